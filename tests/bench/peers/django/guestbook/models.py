"""The table that the guestbook's migration makes."""

from datetime import datetime, timezone
from functools import reduce

from django.db import models


def now():
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


class Entry(models.Model):
    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=60)
    message = models.TextField(max_length=1000)
    # A text, as in Amphi's guestbook: neither page parses it.
    signed_at = models.TextField(default=now)

    class Meta:
        db_table = "entries"
        managed = False
        ordering = ["-id"]

    def initial(self):
        return self.name[:1].upper()

    def hue(self):
        return reduce(lambda hue, byte: (hue * 31 + byte) % 360, self.name.encode(), 0)

    def signed_at_minute(self):
        return self.signed_at.replace("T", " ")[:16]
