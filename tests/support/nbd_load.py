"""A verified load of one NBD client, from a thread of its own."""

from __future__ import annotations

import random
import threading
import time

from tests.support.nbd_client import FLUSH, READ, WRITE, Client

__all__ = ["BLOCK", "Load"]

BLOCK = 4096


class Load(threading.Thread):
    """Verified blocks of its own stripe of the image, at depth 8; failures are kept.

    All of them read as zeros before.
    """

    def __init__(self, where: str, blocks: range, seed: int) -> None:
        super().__init__()
        self._client = Client(where)
        self._blocks = blocks
        self._chance = random.Random(seed)
        self._over = threading.Event()
        self.model = dict.fromkeys(blocks, 0)
        self.requests = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            with self._client:
                while not self._over.is_set():
                    self._round()
                assert self._client.ask(FLUSH).error == 0
        except BaseException as error:  # noqa: BLE001 - told by stop
            self.failure = error

    def _round(self) -> None:
        flying = {}
        for block in self._chance.sample(self._blocks, min(8, len(self._blocks))):
            if self._chance.random() < 0.5:
                value = self._chance.randrange(256)
                cookie = self._client.send(WRITE, block * BLOCK, data=bytes([value]) * BLOCK)
                flying[cookie] = (block, value)
            else:
                flying[self._client.send(READ, block * BLOCK, BLOCK)] = (block, None)
        for _ in range(len(flying)):
            reply = self._client.reply()
            block, value = flying.pop(reply.cookie)
            assert reply.error == 0
            if value is None:
                assert reply.data == bytes([self.model[block]]) * BLOCK
            else:
                self.model[block] = value
            self.requests += 1

    def wait_for_more(self, than: int = 0) -> None:
        """Until it has made more requests than that."""
        limit = time.monotonic() + 60
        while self.requests <= than:
            assert time.monotonic() < limit
            assert self.failure is None
            time.sleep(0.001)

    def stop(self) -> None:
        self._over.set()
        self.join()
        if self.failure is not None:
            raise self.failure
