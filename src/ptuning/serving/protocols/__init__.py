"""The HTTP protocols, one module each: pydantic models, and a pair of functions that read and answer.

Every module has ``router(exchange)``. Errors have each protocol's own shape.
"""
