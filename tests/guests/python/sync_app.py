"""A sync view in Python. Build it with componentize-py 0.25.1, from this folder:

componentize-py -d ../../../guest-sdk/wit -w sync-views componentize sync_app -o sync.wasm

Its module needs `ungranted_imports = true` in amphi.toml, since every import of the world is in the component.
"""
from wit_world import WitWorld
from wit_world.imports import context
from wit_world.imports.types import Request, Response, Route, ViewInfo, ViewKind_Route


class WitWorld(WitWorld):
    def describe(self):
        hello = ViewInfo(
            id=0,
            name="hello",
            kind=ViewKind_Route(Route("GET", "/hello/{name}")),
            atomic=None,
            read_only=False,
            isolation=None,
            retries=0,
            cpu_ms=None,
            timeout_ms=None,
            middleware=[],
        )
        return [hello]

    def handle(self, view: int, request: Request) -> Response:
        text = f"Hello {dict(request.params)['name']} from sync Python, {context.route()}\n"
        return Response(200, [("content-type", "text/plain; charset=utf-8")], text.encode())
