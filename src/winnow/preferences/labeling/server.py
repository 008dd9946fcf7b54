"""The server of the page: a port on this machine, links that open it, an end by a signal"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

import uvicorn
from markupsafe import Markup

from winnow.errors import RunError, SettingsError
from winnow.preferences.labeling.app import LabelPage, app
from winnow.preferences.labeling.auth import Door, key, names
from winnow.preferences.votes_db import Store
from winnow.system.console import safe, say

ENDING = 5  # seconds an answer that is on its way may still take


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises RunError where the port is taken,
    SettingsError for what is no address of this machine.
    """
    if host in ("0.0.0.0", "::", ""):
        raise SettingsError(
            f"host: {host!r} is every address at once",
            remedy="give the one that people will type; without --host it is this machine alone",
        )
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
        try:
            # a port that was just left may be taken again
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen(128)
        except OSError:
            made.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RunError(
                f"port {port} of {host} is in use",
                remedy="--port 0 takes a free one; or end what uses it",
            ) from error
        if error.errno == errno.EACCES:
            raise RunError(f"port {port} is not for users", remedy="take one above 1023") from error
        raise SettingsError(
            f"host: {host!r} is no address of this machine: {error.strerror or error}",
            remedy="leave --host away",
        ) from error
    return made


def serve(
    store: Store,
    people: Sequence[str],
    guidelines: Markup | None,
    host: str,
    port: int,
    opened: bool,
) -> None:
    """Serve until a signal comes. `opened`: show the page in a browser. Whoever comes in gets a
    link for another browser beside it.
    """
    with listen(host, port) as listening:
        port = int(listening.getsockname()[1])
        address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def told(who: str, token: str) -> None:
            say(f"{safe(who)} came in; for another browser: {address}/enter?token={token}")

        door = Door(
            key(store.path.with_name(f"{store.path.name}.key")), names(host, port), people, told
        )
        for who in people:
            say(f"[bold]{safe(who)}[/bold]  {address}/enter?token={door.token(who)}")
        say("each link opens once; Ctrl-C ends, and every vote is kept")
        if opened:
            import webbrowser

            webbrowser.open(f"{address}/enter?token={door.token(people[0])}")
        _server(LabelPage(store, door, guidelines)).run(sockets=[listening])


def _server(page: LabelPage) -> uvicorn.Server:
    """Signals end it (it lets answers on their way through, and hands the signal on); it says
    nothing of itself, and keeps no log of who asked what.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app(page),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=ENDING,
        )
    )
