"""The page's door and its end, without a browser: tokens, cookies, hosts, origins, bodies, signals,
ports. The server is a real one.
"""

from __future__ import annotations

import json
import re
import signal
import stat
import threading

import pytest

import runs
import served
from served import MODELS, Visitor
from winnow.errors import RunError, SettingsError
from winnow.preferences.labeling.auth import Door, Refused, names
from winnow.preferences.labeling.server import listen

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """One server for all tests that leave its process alone."""
    folder = tmp_path_factory.mktemp("label")
    made = served.start(
        folder,
        served.rows(40, 3),
        "--annotator",
        "ann",
        "--annotator",
        "benedict",
        "--overlap",
        "2",
    )
    yield made
    assert made.end() == 143
    # how it ended; no traceback, no warning
    assert made.complained.count("\n") <= 2, made.complained


@pytest.fixture(scope="module")
def ann(here):
    return Visitor(here, "ann")


def test_a_link_opens_once_and_the_cookie_stays(here, ann):
    assert ann.get()[0] == 200
    again = Visitor(here)
    status, _, html = again.get(here.links["ann"].removeprefix(here.url))
    assert status == 403
    assert "used already" in html
    assert again.cookies == {}
    status, headers, _ = ann.get(here.links["ann"].removeprefix(here.url))  # whoever is in already
    assert (status, headers["location"]) == (303, "/")


def test_the_cookie_is_closed_to_scripts_and_to_other_sites(here):
    link = here.links.pop("benedict").removeprefix(here.url)
    assert Visitor(here).ask("HEAD", link, None, {})[0] == 403  # a preview does not use it up
    status, headers, body = Visitor(here).get(link)
    assert (status, headers["location"], body) == (303, "/", "")
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(headers["set-cookie"].split("; "))
    assert "token" not in headers["set-cookie"]


@pytest.mark.parametrize(
    "path", ["/", "/votes", "/votes/x", "/rank/x", "/enter", "/enter?token=", "/enter?token=%ff"]
)
def test_without_a_cookie_there_is_nothing_to_see(here, path):
    status, _, html = Visitor(here).get(path)
    assert status == 403
    assert "Question" not in html


def test_a_cookie_that_was_not_made_here_is_none(here, ann):
    (name, value), stranger = next(iter(ann.cookies.items())), Visitor(here)
    for wrong in (
        "",
        ".",
        "x",
        value[:-1],
        value[:-1] + ("0" if value[-1] != "0" else "1"),
        "YmVuZWRpY3Q=." + value.partition(".")[2],
        "é" * 3,
    ):
        stranger.cookies = {name: wrong.encode().decode("latin-1")}
        assert stranger.get()[0] == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1",
        "localhost",
        "127.0.0.1:1",
        "localhost.evil.example:PORT",
        "evil.example:PORT",
        "0.0.0.0:PORT",
        "",
    ],
)
def test_another_host_is_not_answered(here, ann, host):
    status, _, html = ann.get("/", Host=host.replace("PORT", str(here.port)))
    assert status in (400, 421)
    assert "Question" not in html


def test_this_machines_names_are(here, ann):
    for host in ("localhost", "127.0.0.1", "[::1]", "LOCALHOST"):
        assert ann.get("/", Host=f"{host}:{here.port}")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json"},
    ],
)
def test_a_form_from_elsewhere_is_not_taken(here, ann, headers):
    before, form = len(here.votes()), {**ann.form(), "outcome": "first"}
    assert ann.post("/vote", form, headers)[0] in (403, 415)
    assert len(here.votes()) == before


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"outcome": "best"}, 400),
        ({"outcome": "error"}, 400),
        ({"strength": "4"}, 400),
        ({"strength": "nan"}, 400),
        ({"revision": "x"}, 400),
        ({"revision": "inf"}, 400),
        ({"shown": ""}, 400),
        ({"task": "0" * 32}, 404),
        ({"task": "' OR 1=1 --"}, 404),
        ({"revision": "7"}, 409),
        ({"revision": "-1"}, 409),
        ({"reason": "x" * 70_000}, 413),
    ],
)
def test_a_form_that_no_page_made_counts_nothing(here, ann, change, status):
    before = len(here.votes())
    assert ann.post("/vote", {**ann.form(), "outcome": "first", **change})[0] == status
    assert len(here.votes()) == before


def test_bodies_that_are_no_forms(here, ann):
    own = {"Origin": here.url, "Content-Type": "application/x-www-form-urlencoded"}
    for body in (b"\xff\xfe", b"a=%ff", b"&".join(b"a=1" for _ in range(500)), b""):
        assert ann.ask("POST", "/vote", body, own)[0] == 400


def test_every_answer_is_closed(here, ann):
    for status, headers, _ in (
        ann.get(),
        ann.get("/votes"),
        ann.get("/none"),
        Visitor(here).get(),
        ann.get("/", Host="x"),
        ann.post("/vote", {}),
        ann.ask("PUT", "/", b"", {}),
    ):
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, status
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    nonces = {
        re.search(r"'nonce-([^']+)'", ann.get()[1]["content-security-policy"])[1] for _ in range(5)
    }
    assert len(nonces) == 5


def test_look_leads_nowhere_else(ann):
    for back in (
        "//evil.example",
        "http://evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "",
    ):
        assert ann.post("/look", {"back": back, "theme": "dark"})[1]["location"] == "/"
    assert ann.post("/look", {"back": "/votes", "theme": "purple"})[1].get("set-cookie") is None


def test_no_response_says_who_wrote_what(here, ann):
    seen = ""
    for outcome in ("first", "tie", "bad", "second", "skip"):
        task = ann.form()["task"]
        assert ann.vote(outcome, reason="because") == 303
        pages = [ann.get(path) for path in ("/", "/votes", f"/votes/{task}", f"/rank/{task}")]
        seen += "".join(
            str(headers) + re.sub(r"(?s)<(script|style).*?</\1>", "", html)
            for _, headers, html in pages
        )
    assert "Question" in seen
    for name in (*MODELS, "answers-of", ".jsonl", "votes.db", "gold", "repeat", "benedict"):
        assert name not in seen


def test_at_one_moment_from_many_sides_one_vote(here, ann):
    """The same form sent twenty times at once is one vote; sent with other outcomes it is
    refused.
    """
    before, form = len(here.votes()), ann.form()
    found: list[int] = []
    jobs = [
        threading.Thread(
            target=lambda: found.append(ann.post("/vote", {**form, "outcome": "second"})[0])
        )
        for _ in range(20)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert found == [303] * 20
    assert ann.post("/vote", {**form, "outcome": "first"})[0] == 409
    assert len(here.votes()) == before + 1


def test_the_time_is_the_time_in_sight(here, ann):
    form = ann.form()
    shown = float(str(form["shown"]))
    assert ann.post("/vote", {**form, "shown": shown - 100, "away": 40, "outcome": "tie"})[0] == 303
    html = ann.get(f"/votes/{form['task']}")[2]
    assert re.search(r"6[0-2] s of looking", html)


def test_an_edit_is_one_vote_more_in_the_log_and_none_in_the_count(here, ann):
    task = ann.form()["task"]
    assert ann.vote("first", strength=2, reason="short & <good>") == 303
    before, form = len(here.votes()), ann.form(f"/votes/{task}")
    status, headers, _ = ann.post(
        "/vote", {**form, "outcome": "second", "strength": "1", "reason": ""}
    )
    assert (status, headers["location"]) == (303, f"/votes/{task}")
    assert len(here.votes()) == before
    assert (here.votes()[-1].outcome, here.votes()[-1].strength) == ("second", 1)


# ---------------------------------------------------------------- its life


def test_ends_by_a_signal_goes_on_by_the_same_command_and_cookies_stay(tmp_path):
    made = served.start(tmp_path, served.rows(5), "--annotator", "ann")
    ann = Visitor(made, "ann")
    assert ann.vote("first") == 303
    task = ann.form()["task"]
    assert made.end(signal.SIGINT) == 130
    assert "votes.db: 1 votes" in made.said
    assert "Traceback" not in made.complained
    made.again()
    assert ann.form()["task"] == task
    made.end(signal.SIGKILL)
    made.again()
    assert ann.vote("tie") == 303
    made.end(signal.SIGKILL)
    assert [vote.outcome for vote in made.votes()] == ["first", "tie"]


def test_a_stranger_to_todays_annotators_is_out(tmp_path):
    made = served.start(tmp_path, served.rows(3), "--annotator", "ann")
    ann = Visitor(made, "ann")
    made.end()
    made.words[made.words.index("ann")] = "benedict"
    made.again()
    assert ann.get()[0] == 403
    assert made.end() == 143


def test_the_key_is_its_owners_alone(here):
    file = here.out.with_name("votes.db.key")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(file.read_bytes()) == 32


def test_a_key_that_others_can_read_is_refused(tmp_path, monkeypatch, capsys):
    rows = tmp_path / "a.jsonl"
    rows.write_text(json.dumps(served.rows(1)[0]))
    (tmp_path / "v.db.key").write_bytes(b"x" * 32)
    (tmp_path / "v.db.key").chmod(0o644)
    assert runs.winnow(monkeypatch, "label", rows, "--out", tmp_path / "v.db", "--no-open") == 2
    assert "for its owner alone" in capsys.readouterr().err


def test_a_port_in_use_is_said(here, tmp_path, monkeypatch, capsys):
    rows = tmp_path / "a.jsonl"
    rows.write_text(json.dumps(served.rows(1)[0]))
    assert (
        runs.winnow(monkeypatch, "label", rows, "--out", tmp_path / "v.db", "--port", here.port)
        == 2
    )
    assert f"port {here.port} of 127.0.0.1 is in use" in capsys.readouterr().err


def test_addresses():
    for host in ("0.0.0.0", "::", ""):
        with pytest.raises(SettingsError, match="every address"):
            listen(host, 0)
    with pytest.raises(SettingsError, match="no address of this machine"):
        listen("192.0.2.1", 0)
    with listen("127.0.0.1", 0) as one, pytest.raises(RunError, match="in use"):
        listen("127.0.0.1", one.getsockname()[1])
    assert names("::1", 80) >= {"[::1]", "[::1]:80", "127.0.0.1:80"}
    assert "127.0.0.1" not in names("127.0.0.1", 8080)


def test_a_fresh_link_is_told_when_one_was_used():
    told = []
    door = Door(
        b"k" * 32, names("127.0.0.1", 1), ["ann"], lambda who, token: told.append((who, token))
    )
    first = door.token("ann")
    assert door.enter(first) == "ann"
    with pytest.raises(Refused):
        door.enter(first)
    assert door.enter(told[0][1]) == "ann"
    assert len(told) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--annotator", "ann", "--annotator", "ann"], "names must differ"),
        (["--annotator", " "], "have letters"),
        (["--pairs", "0"], "pairs"),
        (["--repeats", "0.9"], "repeats"),
        (["--guidelines", "none.md"], "none.md cannot be read"),
        (["--gold", "ANSWERS"], "do not say which answer is better"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    tmp_path, monkeypatch, capsys, words, said
):
    rows = tmp_path / "a.jsonl"
    rows.write_text(json.dumps(served.rows(1)[0]))
    given = [str(rows) if word == "ANSWERS" else word for word in words]
    assert runs.winnow(monkeypatch, "label", rows, "--out", tmp_path / "v.db", *given) == 2
    assert said in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
