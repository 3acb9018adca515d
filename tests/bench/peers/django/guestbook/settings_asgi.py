"""The settings under ASGI."""

from guestbook.settings import *  # noqa: F403

# Each request runs on a thread of its own there, so Django's documentation advises against keeping connections.
DATABASES["default"]["CONN_MAX_AGE"] = 0  # noqa: F405
