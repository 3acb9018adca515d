"""The list of examples/guestbook, written with Django: the same rows, statements, elements and text."""
