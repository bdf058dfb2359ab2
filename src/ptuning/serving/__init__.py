"""The server: many tasks on one frozen backbone, over HTTP (``ptuning serve``)."""
