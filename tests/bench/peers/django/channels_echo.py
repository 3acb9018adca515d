"""Web sockets that echo, on Django Channels: a consumer that is sync and one that is async."""

import asgi
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter


class SyncEcho(WebsocketConsumer):
    def receive(self, text_data=None, bytes_data=None):
        self.send(text_data, bytes_data)


class AsyncEcho(AsyncWebsocketConsumer):
    async def receive(self, text_data=None, bytes_data=None):
        await self.send(text_data, bytes_data)


def application(consumer):
    return ProtocolTypeRouter({"http": asgi.application, "websocket": consumer.as_asgi()})


sync_application = application(SyncEcho)
async_application = application(AsyncEcho)
