"""Tests of what takes events: webhooks and commands, and the flags and variables that name them."""

import json
import os
import shlex
import sys
import time

import psutil
import pytest

from pipeline.notifications.receivers import (
    OUTPUT,
    Away,
    Command,
    Refused,
    Webhook,
    escape_for_slack,
    find_receivers,
    take_receivers,
)
from pipeline.runtime.errors import UsageError
from tests.support.ports import free_port
from tests.support.webhooks import Hook, webhook

EVENT = {"event": "finished", "text": "digits: finished", "id": "1"}
SECRET = "Pl4nted-path"  # noqa: S105


@pytest.fixture
def hook():
    hook = Hook()
    with webhook(hook) as hook.url:
        yield hook


def test_webhook_gets_the_event_as_json(hook):
    Webhook(hook.url).deliver(EVENT)
    assert hook.events == [EVENT] and hook.paths == ["/services/T0/Pl4nted-path"]


def test_webhook_text_mentions_nobody_in_slack(hook):
    text = "<!channel> & co: finished"
    Webhook(hook.url).deliver(EVENT | {"text": text})
    assert hook.events[0]["text"] == "&lt;!channel&gt; &amp; co: finished" == escape_for_slack(text)


@pytest.mark.parametrize("status", [500, 503, 408, 425, 429])
def test_webhook_whose_answer_may_change_is_away(hook, status):
    hook.statuses = [status]
    with pytest.raises(Away, match=f"^HTTP {status} [A-Z]"):
        Webhook(hook.url).deliver(EVENT)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_webhook_that_does_not_want_it_refuses_without_its_address_in_the_message(hook, status):
    hook.statuses = [status]
    with pytest.raises(Refused, match=f"^HTTP {status} [A-Z]") as refusal:
        Webhook(hook.url).deliver(EVENT)
    assert SECRET not in str(refusal.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_webhook_redirects_are_not_followed(hook, status):
    hook.statuses = [status]
    with pytest.raises(Refused, match="give the address that it leads to"):
        Webhook(hook.url).deliver(EVENT)
    assert len(hook.paths) == 1


def test_webhook_without_a_server_is_away():
    with pytest.raises(Away, match="Connection refused") as error:
        Webhook(f"http://127.0.0.1:{free_port()}/{SECRET}").deliver(EVENT)
    assert SECRET not in str(error.value)


def test_webhook_whose_certificate_is_unknown_gets_nothing(hook):
    # a server without TLS does not even have one
    with pytest.raises(Away, match="SSL"):
        Webhook(hook.url.replace("http:", "https:")).deliver(EVENT)
    assert not hook.paths


@pytest.mark.parametrize(
    "url",
    [
        *(f"ftp://host/{SECRET}", f"file:///{SECRET}", f"host/{SECRET}", f"https:///{SECRET}", f"https://h:x/{SECRET}"),
        *(
            f"https://me:word@host/{SECRET}",
            f"https://host/{SECRET} x",
            f"https://host/{SECRET}\n",
            f"https://[h/{SECRET}",
        ),
        f"https://höst/{SECRET}",
    ],
)
def test_webhook_with_an_unusable_address_is_refused_without_showing_it(url):
    with pytest.raises(UsageError, match="^notify_url must be an http:// or https:// address") as refusal:
        Webhook(url)
    assert SECRET not in str(refusal.value) and "host" not in str(refusal.value)


def test_webhook_name_and_folder_hold_no_secret():
    receiver = Webhook(f"https://hooks.slack.com:8443/services/{SECRET}?token={SECRET}")
    assert receiver.name == "https://hooks.slack.com:8443" and SECRET not in str(receiver.folder)
    assert receiver.folder != Webhook("https://hooks.slack.com:8443/services/other").folder


def python(code, tmp_path):
    script = tmp_path / "receive it.py"
    script.write_text(code)
    return f"{shlex.quote(sys.executable)} '{script}' 'two words' $HOME"


def test_command_gets_a_line_of_json_without_a_shell(tmp_path):
    code = f"import sys, json; open({str(tmp_path / 'got')!r}, 'w').write(json.dumps([sys.argv[1:], sys.stdin.read()]))"
    Command(python(code, tmp_path)).deliver(EVENT)
    words, line = json.loads((tmp_path / "got").read_text())
    assert words == ["two words", "$HOME"] and json.loads(line) == EVENT and line.count("\n") == 1


def test_command_output_goes_to_a_file(tmp_path, capfd):
    receiver = Command(python("import sys; print('out'); sys.exit('err')", tmp_path))
    with pytest.raises(Away, match="exit code 1; its output is in "):
        receiver.deliver(EVENT)
    assert sorted((receiver.folder / OUTPUT).read_text().split()) == ["err", "out"]
    assert capfd.readouterr() == ("", "")


def test_command_that_hangs_is_ended_with_what_it_started(tmp_path):
    code = (
        "import os, subprocess, sys, time; child = subprocess.Popen(['sleep', '600'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\ntime.sleep(600)"
    )
    receiver = Command(python(code, tmp_path), seconds=2)
    with pytest.raises(Away, match="more than 2 s"):
        receiver.deliver(EVENT)
    child = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child is alive")


def test_command_that_does_not_read_its_input_is_no_error():
    Command("true").deliver(EVENT | {"text": "x" * 200_000})


@pytest.mark.parametrize(("command", "got"), [("no-such-program -x", "'no-such-program'"), ("echo 'open", "''")])
def test_command_that_does_not_exist_is_refused(command, got):
    with pytest.raises(UsageError, match=f"^notify_command must begin with a program that exists.* got {got}$"):
        Command(command)


def test_command_that_is_an_address_is_refused_without_showing_it():
    with pytest.raises(UsageError, match="got an address$") as refusal:
        Command(f"https://host/{SECRET}")
    assert SECRET not in str(refusal.value)


def test_find_receivers_prefers_a_flag_to_its_variable():
    environ = {"CONVMIXER_NOTIFY_URL": "https://one/x", "CONVMIXER_NOTIFY_COMMAND": "cat"}
    names = [receiver.name for receiver in find_receivers(environ, {"notify_url": "https://two/y"})]
    assert names == ["https://two", "the command cat"]
    assert [one.name for one in find_receivers(environ, {"notify_url": "none"})] == ["the command cat"]
    assert find_receivers({"CONVMIXER_NOTIFY_URL": " "}) == []


def test_find_receivers_names_the_variable_that_is_wrong():
    with pytest.raises(UsageError, match="^CONVMIXER_NOTIFY_URL must be"):
        find_receivers({"CONVMIXER_NOTIFY_URL": "slack"})


def test_find_receivers_refuses_an_address_that_mlflow_run_has_stored():
    with pytest.raises(UsageError, match="^notify_url must not be .* into CONVMIXER_NOTIFY_URL$") as error:
        find_receivers({"MLFLOW_RUN_ID": "0" * 32}, {"notify_url": f"https://host/{SECRET}"})
    assert SECRET not in str(error.value)
    assert find_receivers({"MLFLOW_RUN_ID": "0" * 32}, {"notify_url": "none"}) == []


def test_take_receivers_leaves_no_address_to_processes_started_later():
    environ = {"CONVMIXER_NOTIFY_URL": "https://one/x", "HOME": os.environ["HOME"]}
    assert len(take_receivers(environ, {})) == 1 and environ == {"HOME": os.environ["HOME"]}
    environ |= {"CONVMIXER_NOTIFY_URL": "https://one/x", "CONVMIXER_NOTIFY_COMMAND": "no-such-program"}
    with pytest.raises(UsageError):
        take_receivers(environ, {})
    assert "CONVMIXER_NOTIFY_URL" not in environ
