"""A server that does nothing, to measure the load generator: ``python -m serving.trivial PORT``."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

import uvloop

BODY = b'{"object":"classify","data":[[{"score":0.9,"label":"positive"},{"score":0.1,"label":"negative"}]]}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (
    len(BODY),
    BODY,
)
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Trivial(asyncio.Protocol):
    """Reads requests to their ends and answers the same to all."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.received = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        while (end := self.received.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.received[:end])
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.received) < whole:
                return
            self.received = self.received[whole:]
            self.transport.write(ANSWER)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
