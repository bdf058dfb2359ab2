"""The page at ``/``: choose a task, type a text, see what it says; or ask all tasks at once, or many rows.

Rendered by the server with Jinja2. In the browser there is htmx, which swaps parts of the page, and a few
lines of our own; without scripts the forms work as forms do. Nothing is loaded from another host.

- ``router.py``: the addresses
- ``forms.py``, ``asking.py``: what a form asks, and the answer
- ``rendering.py``: templates and headers
- ``views.py``, ``tasks.py``, ``cards.py``: answers, tasks and model cards as the templates show them
- ``tables.py``: rows that are pasted or dropped, and the CSV
- ``curl.py``: the same request for a shell
- ``sessions.py``: keys, cookies, and forms from other sites
- ``files.py``, ``static/``, ``templates/``
"""

from ptuning.serving.page.router import make_page

__all__ = ["make_page"]
