"""Web sockets of the guest `tests/guests/sockets` as independent clients see them: the packages `websockets` and `wsproto`,
and a plain socket for what no client would send.

Arguments: the address of the server, the mode of the views, `message_max_bytes`, `ping_ms`, and whether the server
compresses. Each check writes its name to standard output when it has passed.
"""

import itertools
import random
import socket
import struct
import sys
import time

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

ADDRESS, MODE, MAX, PING_MS, COMPRESSES = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5] == "true"
HOST, PORT = ADDRESS.rsplit(":", 1)
# How long anything may take that should happen soon.
SOON = 15
RANDOM = random.Random(1)


ROOMS = itertools.count()


def path(name):
    """A room for each connection, because who leaves a room is told to all others in it."""
    return f"/{MODE}/room/{next(ROOMS)}?name={name}"


def opened(name, compression=None, **options):
    """A welcomed connection."""
    url = f"ws://{ADDRESS}{path(name)}"
    client = connect(url, compression=compression, max_size=None, ping_interval=None, proxy=None, **options)
    assert client.recv(SOON) == f"welcome {name}"
    return client


def close_of(client):
    """The code and reason of the server's close, after what comes before it."""
    try:
        while True:
            client.recv(SOON)
    except ConnectionClosed as closed:
        assert closed.rcvd is not None, "the connection ended without a close"
        return closed.rcvd.code, closed.rcvd.reason


def lengths():
    chosen = [0, 1, 2, 124, 125, 126, 127, 65534, 65535, 65536, 65537, MAX - 6, MAX - 5, MAX - 1, MAX]
    return sorted(set(chosen + [RANDOM.randrange(MAX) for _ in range(10)]))


def echoes_of_all_lengths():
    for compression in [None, "deflate"]:
        with opened("lengths", compression=compression) as client:
            for length in lengths():
                for content in [RANDOM.randbytes(length), b"a" * length]:
                    client.send(content)
                    assert client.recv(SOON) == content, length
                text = ("~é€😀" * length).encode()[:length].decode(errors="ignore")
                client.send(text)
                assert client.recv(SOON) == f"echo {text}", length


def fragments_with_control_frames_between():
    with opened("fragments") as client:
        for count in [2, 3, 10, 100]:
            pongs = []

            def pieces(piece):
                for number in range(count):
                    yield piece
                    pongs.append(client.ping(bytes([number])))
                    client.pong(b"nobody asked")

            client.send(pieces("~é"))
            assert client.recv(SOON) == "echo " + "~é" * count
            client.send(pieces(b"\xff\x00"))
            assert client.recv(SOON) == b"\xff\x00" * count
            assert all(pong.wait(SOON) for pong in pongs)


def pings_are_answered():
    with opened("pings") as client:
        for length in [0, 1, 125]:
            assert client.ping(b"p" * length).wait(SOON)


def the_client_closes():
    for code, reason in [(1000, ""), (1001, "away"), (3000, "é" * 61), (4999, "x" * 123)]:
        client = opened("by-client")
        client.close(code, reason)
        assert client.protocol.close_rcvd.code == code


def a_close_without_a_code():
    with Raw("no-code") as raw:
        raw.send(0x88, b"")
        assert raw.close() is None


def the_view_closes():
    with opened("by-view") as client:
        client.send("close " + "é" * 61)
        assert close_of(client) == (4000, "é" * 61)


def try_to_send(client, message, text=None):
    """Sends what the host refuses. The host may have closed the connection before all of it is sent."""
    try:
        client.send(message, text)
    except ConnectionClosed:
        pass


def what_is_not_utf8_is_1007():
    with opened("utf8") as client:
        try_to_send(client, b"~\xed\xa0\x80", text=True)
        assert close_of(client)[0] == 1007
    with opened("utf8") as client:
        try_to_send(client, [b"~\xe2\x82", b"~"], text=True)
        assert close_of(client)[0] == 1007


def what_is_too_large_is_1009():
    for compression in [None, "deflate"]:
        with opened("large", compression=compression) as client:
            try_to_send(client, b"x" * (MAX + 1))
            assert close_of(client)[0] == 1009
        with opened("large", compression=compression) as client:
            try_to_send(client, [b"x" * MAX, b"x"])
            assert close_of(client)[0] == 1009


def what_breaks_the_protocol_is_1002():
    for frame in [
        bytes([0x81, 1]) + b"~",
        masked(0x91, b"~"),
        masked(0xA1, b"~"),
        masked(0xF1, b"~"),
        masked(0x83, b""),
        masked(0x87, b""),
        masked(0x8B, b""),
        masked(0x8F, b""),
        masked(0x80, b"~"),
        masked(0x01, b"~") + masked(0x81, b"~"),
        masked(0x09, b""),
        masked(0x08, b""),
        masked(0x89, b"p" * 126),
        masked(0x88, b"1"),
        masked(0x88, struct.pack(">H", 1005)),
        masked(0x88, struct.pack(">H", 2000)),
        bytes([0x82, 0x80 | 126]) + struct.pack(">H", 125) + bytes(4 + 125),
        bytes([0x82, 0x80 | 127]) + struct.pack(">Q", 65535) + bytes(4),
        bytes([0x82, 0x80 | 127]) + struct.pack(">Q", 1 << 63) + bytes(4),
    ]:
        with Raw("broken") as raw:
            raw.socket.sendall(frame)
            assert raw.close() == 1002, frame
    # Compression that was not negotiated.
    with Raw("broken") as raw:
        raw.send(0xC1, b"~")
        assert raw.close() == 1002


def deflate_is_accepted_as_configured():
    for offered in ["deflate", None]:
        with opened("deflate", compression=offered) as client:
            agreed = "permessage-deflate" in client.response.headers.get("sec-websocket-extensions", "")
            assert agreed == (COMPRESSES and offered is not None)
            text = "~" * 5000
            client.send(text)
            assert client.recv(SOON) == f"echo {text}"
    for offer, taken in [
        ("permessage-deflate; server_no_context_takeover", True),
        ("permessage-deflate; client_max_window_bits", True),
        ("permessage-deflate; server_max_window_bits=9", False),
        ("permessage-deflate; unknown", False),
        ("permessage-deflate; unknown, permessage-deflate", True),
        ("x-webkit-deflate-frame", False),
    ]:
        with Raw("deflate", f"sec-websocket-extensions: {offer}\r\n") as raw:
            assert ("permessage-deflate" in raw.head) == (taken and COMPRESSES), (offer, raw.head)


def subprotocols_are_chosen_by_the_view():
    with opened("protocol", subprotocols=["v9", "v1", "v2"]) as client:
        assert client.subprotocol == "v2"
    with opened("protocol", subprotocols=["v9"]) as client:
        assert client.subprotocol is None
    with opened("protocol") as client:
        assert client.subprotocol is None


def another_client_agrees():
    """`wsproto` shares no code with `websockets`."""
    stream = socket.create_connection((HOST, int(PORT)), SOON)
    client = WSConnection(ConnectionType.CLIENT)
    extensions = [PerMessageDeflate()]
    stream.sendall(client.send(Request(host=ADDRESS, target=path("wsproto"), extensions=extensions, subprotocols=["v1"])))
    heard = []

    def hear(count):
        while len(heard) < count:
            client.receive_data(stream.recv(4096) or None)
            for event in client.events():
                if isinstance(event, (TextMessage, BytesMessage)) and heard and isinstance(heard[-1], type(event)) and not done[0]:
                    heard[-1].data += event.data
                else:
                    heard.append(event)
                done[0] = getattr(event, "message_finished", True)
        return heard

    done = [True]
    accepted = hear(2)[0]
    assert isinstance(accepted, AcceptConnection) and accepted.subprotocol == "v1"
    assert bool(accepted.extensions) == COMPRESSES
    assert heard[1].data == "welcome wsproto"
    stream.sendall(client.send(TextMessage(data="~" * 3000, message_finished=False)))
    stream.sendall(client.send(Ping(payload=b"between")))
    stream.sendall(client.send(TextMessage(data="é")))
    hear(4)
    assert isinstance(heard[2], Pong) and bytes(heard[2].payload) == b"between"
    while not done[0]:
        hear(len(heard) + 1)
    assert heard[3].data == "echo " + "~" * 3000 + "é"
    stream.sendall(client.send(CloseConnection(code=1000, reason="done")))
    closed = hear(5)[4]
    assert isinstance(closed, CloseConnection) and closed.code == 1000
    stream.close()


def a_client_that_answers_pings_stays():
    with opened("stays") as client:
        time.sleep(4 * PING_MS / 1000)
        client.send("still here")
        assert client.recv(SOON) == "echo still here"


def a_client_that_answers_no_ping_is_gone():
    with Raw("no-pong") as raw:
        since = time.monotonic()
        while raw.socket.recv(4096):
            pass
        took = time.monotonic() - since
        assert took < 2 * PING_MS / 1000 + 5, took


def a_client_that_reads_nothing_is_gone():
    """It goes on to send pongs, so it is not silent; but nothing of what is sent to it is taken."""
    raw = Raw("no-read")
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    for _ in range(12):
        raw.send(0x81, b"flood 1000")
    # The kernel may take the pongs after the server has closed the connection.
    until = time.monotonic() + 4 * PING_MS / 1000 + 2
    while time.monotonic() < until:
        try:
            raw.send(0x8A, b"")
        except OSError:
            return
        time.sleep(PING_MS / 4000)


def masked(first, payload):
    length = len(payload)
    head = bytes([first, 0x80 | length]) if length < 126 else bytes([first, 0x80 | 126]) + struct.pack(">H", length)
    mask = RANDOM.randbytes(4)
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


class Raw:
    """A plain socket after the handshake and the welcome."""

    def __init__(self, name, headers=""):
        self.socket = socket.create_connection((HOST, int(PORT)), SOON)
        self.socket.sendall(
            f"GET {path(name)} HTTP/1.1\r\nhost: {ADDRESS}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n"
            f"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n".encode()
        )
        self.read = b""
        while f"welcome {name}".encode() not in self.read:
            more = self.socket.recv(4096)
            assert more, self.read
            self.read += more
        self.head = self.read.split(b"\r\n\r\n")[0].decode()
        assert self.head.startswith("HTTP/1.1 101 ") and "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in self.head, self.head

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, first, payload):
        self.socket.sendall(masked(first, payload))

    def close(self):
        """The code of the close that the server sends, after which the connection ends. None: it has none."""
        frame = b""
        while more := self.socket.recv(4096):
            frame += more
        assert frame[0] == 0x88 and frame[1] == len(frame) - 2, frame
        return struct.unpack(">H", frame[2:4])[0] if frame[1] else None


CHECKS = [
    echoes_of_all_lengths,
    fragments_with_control_frames_between,
    pings_are_answered,
    the_client_closes,
    a_close_without_a_code,
    the_view_closes,
    what_is_not_utf8_is_1007,
    what_is_too_large_is_1009,
    what_breaks_the_protocol_is_1002,
    deflate_is_accepted_as_configured,
    subprotocols_are_chosen_by_the_view,
    another_client_agrees,
    a_client_that_answers_pings_stays,
    a_client_that_answers_no_ping_is_gone,
    a_client_that_reads_nothing_is_gone,
]

for check in CHECKS:
    check()
    print(check.__name__, flush=True)
