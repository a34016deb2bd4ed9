"""Passes a connection on, so that its end here need not learn that the other end is gone."""

import asyncio


async def open_relay(host: str, port: int) -> int:
  """Opens a port of this machine behind which is `port` of `host`.

  JAX's client aborts the process as soon as its connection to the coordinator breaks; the one that it has through here
  only falls silent, which leaves the word to us.
  """

  async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
      try:
        from_there, to_there = await asyncio.open_connection(host, port)
        break
      except OSError:  # The service is about to start; or is gone for good, and the silence is what we want.
        await asyncio.sleep(0.1)

    returning = asyncio.create_task(_pump(from_there, writer))
    await _pump(reader, to_there)
    to_there.close()
    await returning

  server = await asyncio.start_server(connect, "127.0.0.1", 0)
  return server.sockets[0].getsockname()[1]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
  try:
    while data := await reader.read(1 << 16):
      writer.write(data)
      await writer.drain()
  except OSError:
    pass
