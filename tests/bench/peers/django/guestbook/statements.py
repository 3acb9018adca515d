"""Prints the SQL statements of one request for the list, as JSON. The argument is the header `cookie` of the request."""

import json
import os
import sys

import django
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

os.environ["DJANGO_SETTINGS_MODULE"] = "guestbook.settings"
django.setup()
with CaptureQueriesContext(connection) as captured:
    response = Client(HTTP_HOST="127.0.0.1", HTTP_COOKIE=sys.argv[1]).get("/")
assert response.status_code == 200, response.content
print(json.dumps([query["sql"] for query in captured]))
