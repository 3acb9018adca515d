"""A sync view in Python. Build it with componentize-py 0.25.1, from this folder:

componentize-py -d ../../../guest-sdk/wit -w sync-views componentize sync_app -o sync.wasm
"""
from wit_world import WitWorld
from wit_world.imports import context
from wit_world.imports.types import Request, Response, ViewInfo


class WitWorld(WitWorld):
    def describe(self):
        return [ViewInfo(0, "hello", "GET", "/hello/{name}", None, None, None)]

    def handle(self, view: int, request: Request) -> Response:
        text = f"Hello {dict(request.params)['name']} from sync Python, {context.route()}\n"
        return Response(200, [("content-type", "text/plain; charset=utf-8")], text.encode())
