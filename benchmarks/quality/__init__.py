"""The quality study: how well ptuning's methods and their peers learn (``make quality``)."""
