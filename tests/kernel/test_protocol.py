"""The kernel's protocol, tried by a client that does what front ends and strangers may do: forged and repeated
messages, bytes that are no text, marks of evcxr's as text, stdin, children of cells, comms, cells behind a failed one.

    python tests/kernel/test_protocol.py     (as test_kernel.py, which runs it too)
"""

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.session import Session


def broken(kernel):
    """A kernel without an engine: its protocol is whole, its cells fail at once."""
    return type(kernel)(PATH="/nowhere")


def raw(kernel, channel):
    """A socket to one of the kernel's ports."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(f"tcp://127.0.0.1:{getattr(kernel.manager, channel + '_port')}")
    return socket


def frames_of(session, kind, content=None):
    return session.serialize(session.msg(kind, content or {}))


def replies(socket, seconds):
    """How many messages come within some seconds after the last."""
    count = 0
    while socket.poll(seconds * 1000):
        socket.recv_multipart()
        count += 1
    return count


def streams(outputs, name="stdout"):
    return "".join(content["text"] for _, kind, content in outputs if kind == "stream" and content["name"] == name)


def shell_reply(kernel, request, timeout=120):
    while (reply := kernel.client.get_shell_msg(timeout=timeout))["parent_header"].get("msg_id") != request:
        pass
    return reply


def until_idle(kernel, request):
    while True:
        message = kernel.client.get_iopub_msg(timeout=60)
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle" and message["parent_header"].get("msg_id") == request:
            return


def test_forged_messages_are_dropped_for_ever(kernel):
    with broken(kernel) as victim:
        for channel in ("shell", "control"):
            socket = raw(victim, channel)
            for number in range(300):
                frames = frames_of(Session(key=b"wrong"), "kernel_info_request")
                if number % 3 == 1:
                    frames[1] = b"no hexadecimal digits"
                if number % 3 == 2:
                    frames = frames[: 1 + number % 5]
                socket.send_multipart(frames)
            assert replies(socket, 1) == 0
            socket.send_multipart(frames_of(victim.manager.session, "kernel_info_request"))
            assert replies(socket, 2) == 1, f"{channel}: the kernel no longer answers"
        assert victim.manager.is_alive()


def test_a_message_is_answered_once(kernel):
    with broken(kernel) as victim:
        frames = frames_of(victim.manager.session, "kernel_info_request")
        for channel, wanted in (("shell", 1), ("control", 0)):
            socket = raw(victim, channel)
            for _ in range(3):
                socket.send_multipart(frames)
            assert replies(socket, 2) == wanted, channel


def test_other_signature_schemes_are_refused(_):
    program = KernelSpecManager().get_kernel_spec("cltlab").argv[0]
    connection = {f"{name}_port": 0 for name in ("shell", "iopub", "stdin", "control", "hb")}
    connection |= {"ip": "127.0.0.1", "transport": "tcp", "key": "key", "signature_scheme": "hmac-md5"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "connection.json"
        file.write_text(json.dumps(connection))
        ended = subprocess.run([program, str(file)], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1, ended
    assert "signature_scheme" in ended.stderr and "hmac-md5" in ended.stderr and "hmac-sha256" in ended.stderr, ended.stderr


def test_the_kernels_folder_is_private(kernel):
    pid = kernel.manager.provisioner.pid
    root = Path(os.environ.get("CLTLAB_ROOT") or kernel.manager.kernel_spec.env["CLTLAB_ROOT"])
    (folder,) = root.glob(f"target/notebook/kernel-{pid}")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700, oct(folder.stat().st_mode)


def test_bytes_that_are_no_text(kernel):
    code = 'use std::io::Write; std::io::stdout().write_all(b"one \\xff\\xfe end\\n").unwrap(); std::io::stderr().write_all(b"two \\xc3\\x28 end\\n").unwrap(); println!("three");'
    reply, outputs = kernel.run(code)
    assert reply["status"] == "ok", reply
    assert streams(outputs) == "one \ufffd\ufffd end\nthree\n", outputs
    assert "two \ufffd( end" in streams(outputs, "stderr"), outputs
    for number in range(3):
        _, outputs = kernel.run(f'println!("line {number}"); eprintln!("error {number}");')
        assert streams(outputs) == f"line {number}\n" and streams(outputs, "stderr") == f"error {number}\n", outputs


def test_marks_of_evcxr_are_text(kernel):
    kernel.run("let kept_over_marks = 7;")
    marks = ["EVCXR_EXECUTION_COMPLETE", "EVCXR_PANIC_NOTIFICATION", "EVCXR_ERROR_OCCURRED", "EVCXR_VARIABLE_CHANGED_TYPE:kept_over_marks"]
    marks += ["EVCXR_INPUT_REQUEST:name", "EVCXR_BEGIN_CONTENT", "EVCXR_END_CONTENT"]
    lines = [line for mark in marks for line in (mark, f"before {mark}")]
    code = "".join(f'println!("{line}");\n' for line in lines) + 'println!("after");'
    reply, outputs = kernel.run(code)
    assert reply["status"] == "ok", reply
    assert streams(outputs).splitlines() == lines + ["after"], streams(outputs)
    for mark in marks[:3]:
        reply, outputs = kernel.run(f'println!("{mark}");')
        assert reply["status"] == "ok" and streams(outputs) == mark + "\n", (reply, outputs)
    assert kernel.value("kept_over_marks") == "7"
    reply, outputs = kernel.run('println!("EVCXR_BEGIN_CONTENT text/html\\nnever ended");')
    assert reply["status"] == "ok" and "never ended" in streams(outputs), outputs


def test_stdin_of_a_cell_is_empty(kernel):
    begun = time.time()
    assert kernel.value("let mut line = String::new(); std::io::stdin().read_line(&mut line)?") == "0"
    assert kernel.value('std::process::Command::new("cat").status()?.success()') == "true"
    assert kernel.value("{ let mut all = Vec::new(); std::io::Read::read_to_end(&mut std::io::stdin(), &mut all)? }") == "0"
    assert time.time() - begun < 60


def test_a_front_end_that_can_answer_is_asked(kernel):
    asked = []

    def answers(*lines):
        left = list(lines)

        def answer(content):
            asked.append(content)
            return left.pop(0)

        return answer

    read = "let mut line = String::new(); std::io::stdin().read_line(&mut line)?; line"
    reply, outputs = kernel.run('use std::io::Write; print!("At 12:30, name? "); std::io::stdout().flush()?; { ' + read + " }", answer=answers("Ada"))
    assert reply["status"] == "ok" and shown(outputs) == [{"text/plain": '"Ada\\n"'}], (reply, outputs)
    assert asked == [{"prompt": "At 12:30, name? ", "password": False}], asked
    # Each line is asked for once, in the cell and in processes that it starts, and a cell that reads nothing asks nothing.
    asked.clear()
    reply, outputs = kernel.run("{ let mut all = Vec::new(); for _ in 0..3 { all.push({ " + read + " }); } all.concat() }", answer=answers("a", "", "ü: c"))
    assert shown(outputs) == [{"text/plain": '"a\\n\\nü: c\\n"'}] and len(asked) == 3, (outputs, asked)
    reply, outputs = kernel.run('std::process::Command::new("sh").args(["-c", "read word; echo got $word"]).status()?.success()', answer=answers("it"))
    assert reply["status"] == "ok" and streams(outputs) == "got it\n" and len(asked) == 4, (reply, outputs, asked)
    assert kernel.run("std::thread::sleep(std::time::Duration::from_millis(500)); 5", answer=answers())[0]["status"] == "ok"
    assert len(asked) == 4, asked
    # Without such a front end it is empty again.
    assert kernel.value("let mut line = String::new(); std::io::stdin().read_line(&mut line)?") == "0"


def test_an_interrupt_ends_a_question(kernel):
    kernel.run("let kept_over_question = 3;")
    begun = time.time()

    def interrupt(_):
        kernel.manager.interrupt_kernel()
        time.sleep(0.5)
        return "late"

    reply, outputs = kernel.run("{ let mut lines = 0; for line in std::io::stdin().lines() { let _ = line?; lines += 1; } lines < 3 }", answer=interrupt)
    assert reply["status"] == "ok" and time.time() - begun < 60, (reply, outputs)
    assert kernel.value("kept_over_question") == "3"


def interrupt_at(kernel, word):
    def on_output(message):
        if word in message["content"].get("text", ""):
            kernel.manager.interrupt_kernel()

    return on_output


def test_an_interrupt_ends_what_a_cell_waits_for(kernel):
    kernel.run("let kept_over_interrupt = 8;")
    begun = time.time()
    code = 'println!("waiting"); let ended = std::process::Command::new("sleep").arg("1000").status()?; ended.success()'
    reply, outputs = kernel.run(code, on_output=interrupt_at(kernel, "waiting"))
    assert reply["status"] == "ok" and time.time() - begun < 60, reply
    assert kernel.value("kept_over_interrupt") == "8"


def test_an_interrupt_gets_the_kernel_back_from_children_that_stay(kernel):
    kernel.run("let lost_with_child = 9;")
    code = """
    let held = std::process::Command::new("setsid").args(["sh", "-c", "trap '' INT TERM HUP; while :; do sleep 1; done"]).spawn()?;
    println!("waiting");
    loop { std::thread::sleep(std::time::Duration::from_millis(10)); }
    """
    begun = time.time()
    reply, outputs = kernel.run(code, on_output=interrupt_at(kernel, "waiting"))
    assert reply["status"] == "error" and time.time() - begun < 60, reply
    text = "\n".join(reply["traceback"])
    assert "did not stop within 5 s of the interrupt" in text and "lost_with_child" in text, text
    assert kernel.value("2 + 3") == "5"


def test_an_interrupt_while_a_cell_is_compiled(kernel):
    kernel.run("let kept_over_compiler = 10;")
    request = kernel.client.execute('println!("must not run"); std::thread::sleep(std::time::Duration::from_secs(600));')
    time.sleep(0.1)
    kernel.manager.interrupt_kernel()
    reply = shell_reply(kernel, request, timeout=60)["content"]
    until_idle(kernel, request)
    assert reply["status"] == "error" and "did not run" in "\n".join(reply["traceback"]), reply
    assert kernel.value("kept_over_compiler") == "10"


def test_a_cell_sent_after_an_error_runs(kernel):
    with broken(kernel) as victim:
        for _ in range(200):
            request = victim.client.execute("1 + 1")
            assert shell_reply(victim, request)["content"]["status"] == "error"
            until_idle(victim, request)


def test_a_cell_sent_while_cells_are_aborted_runs(kernel):
    failing = kernel.client.execute('std::thread::sleep(std::time::Duration::from_secs(2)); panic!("stop here")')
    behind = {kernel.client.execute("1 + 1") for _ in range(1000)}
    assert shell_reply(kernel, failing)["content"]["status"] == "error"
    late = kernel.client.execute("let late = 1;")
    while behind or late:
        reply = kernel.client.get_shell_msg(timeout=120)
        request, status = reply["parent_header"].get("msg_id"), reply["content"]["status"]
        if request == late:
            assert status == "ok", status
            late = None
        elif request in behind:
            assert status == "aborted", status
            behind.remove(request)
    assert kernel.value("late") == "1"


def test_cells_behind_a_failed_one_are_aborted_and_nothing_else(kernel):
    failing = kernel.client.execute('std::thread::sleep(std::time::Duration::from_millis(300)); panic!("stop here")')
    behind = [kernel.client.execute("1 + 1") for _ in range(3)]
    completion = kernel.client.complete("TrainConfig::def", 16)
    wanted = {failing: "error", completion: "ok"} | {request: "aborted" for request in behind}
    got = {}
    while len(got) < len(wanted):
        reply = kernel.client.get_shell_msg(timeout=120)
        if reply["parent_header"].get("msg_id") in wanted:
            got[reply["parent_header"]["msg_id"]] = reply["content"]["status"]
    assert got == wanted, (got, wanted)
    assert kernel.value("3 + 3") == "6"


def test_comm_messages_are_answered_while_a_cell_runs(kernel):
    client = kernel.client
    cell = client.execute('println!("sleeping"); std::thread::sleep(std::time::Duration::from_secs(4)); panic!("at the end")')
    while client.get_iopub_msg(timeout=120)["content"].get("text", "") != "sleeping\n":
        pass
    begun = time.time()
    sent = {}
    for kind, content in (("comm_open", {"comm_id": "c", "target_name": "nobody", "data": {}}), ("comm_msg", {"comm_id": "c", "data": {}}), ("comm_close", {"comm_id": "c", "data": {}})):
        message = client.session.msg(kind, content)
        client.shell_channel.send(message)
        sent[message["header"]["msg_id"]] = kind
    states, closed, last = {}, [], None
    while time.time() - begun < 2 and len([kind for kind in sent if states.get(kind) == ["busy", "idle"]]) < 3:
        message = client.get_iopub_msg(timeout=2)
        parent = message["parent_header"].get("msg_id")
        if message["msg_type"] == "status":
            states.setdefault(parent, []).append(message["content"]["execution_state"])
        if message["msg_type"] == "comm_close":
            closed.append(message["content"]["comm_id"])
    message = client.get_iopub_msg(timeout=2)
    last = (message["parent_header"]["msg_id"], message["content"].get("execution_state"))
    assert closed == ["c"] and all(states[message] == ["busy", "idle"] for message in sent), (closed, states)
    assert last == (cell, "busy"), last
    assert time.time() - begun < 2
    reply = client.get_shell_msg(timeout=60)
    assert reply["parent_header"]["msg_id"] == cell and reply["msg_type"] == "execute_reply", reply
    until_idle(kernel, cell)


def shown(outputs):
    return [content["data"] for _, kind, content in outputs if kind in ("display_data", "execute_result")]


def test_every_display_of_a_cell_is_shown(kernel):
    # What any library may print, and what display() of this one does.
    show = 'println!("EVCXR_BEGIN_CONTENT text/html\\n<b>{0}</b>\\nEVCXR_END_CONTENT\\nEVCXR_BEGIN_CONTENT text/plain\\n{0}\\nEVCXR_END_CONTENT");'
    _, outputs = kernel.run(show.format("a") + show.format("b"))
    assert [data["text/html"] for data in shown(outputs)] == ["<b>a</b>", "<b>b</b>"], outputs
    _, outputs = kernel.run('for n in 0..3 { display(picture::bars(&[(format!("bar {n}"), 1.0)], &ChartConfig::default())?); }')
    assert [data["text/plain"] for data in shown(outputs)] == [f"Bars: bar {n} 1" for n in range(3)], outputs
    assert all(data["text/html"].startswith("<img ") for data in shown(outputs)), outputs
    _, outputs = kernel.run('display(vec![FeatureId { layer: 1, feature: 605 }])')
    assert "<table" in shown(outputs)[0]["text/html"] and "605" in shown(outputs)[0]["text/plain"], outputs
    _, outputs = kernel.run(show.format("c") + ' println!("between"); 42')
    assert [kind for _, kind, _ in outputs] == ["display_data", "stream", "execute_result"], outputs
    assert shown(outputs)[1] == {"text/plain": "42"}, outputs
    # evcxr tries a display on numbers whose type is open, and shows them by Debug.
    for number in ("11", "1.5"):
        _, outputs = kernel.run(f"let open_number = {number}; open_number")
        assert shown(outputs) == [{"text/plain": number}], outputs
    _, outputs = kernel.run("for n in 0..3 { println!(\"{n}\"); }")
    assert shown(outputs) == [], outputs


def test_a_panic_names_its_line(kernel):
    reply, _ = kernel.run("let first = 1;\n\nlet nothing: Option<i32> = None;\nnothing.unwrap();")
    text = "\n".join(reply["traceback"])
    assert reply["ename"] == "Panic" and "this cell, line 4" in text and "nothing.unwrap();" in text, text
    kernel.run("fn deep(list: &[i32]) -> i32 {\n    let at = list.len();\n    list[at]\n}")
    reply, _ = kernel.run("let two = 2;\ndeep(&[1, two])")
    text = "\n".join(reply["traceback"])
    assert "line 3" in text and "list[at]" in text and "this cell, line" not in text, text


def test_a_closure_in_a_cell_beside_a_text_variable(kernel):
    kernel.run('let borrowed_text = "some words";')
    assert kernel.value("(0..3).map(|n| n * 2).collect::<Vec<_>>()") == "[0, 2, 4]"
    assert kernel.value("(0..3).filter(|n| borrowed_text.len() > *n).count()") == "3"
    reply, _ = kernel.run("let twice = |n: usize| n * 2;\ntwice(borrowed_text.len())")
    text = "\n".join(reply["traceback"])
    assert reply["status"] == "error" and "`twice` is a closure" in text and "borrowed_text" not in text, text
    assert kernel.value("{ let twice = |n: usize| n * 2; twice(borrowed_text.len()) }") == "20"
    assert kernel.value("borrowed_text") == '"some words"'


TESTS = [(name, test) for name, test in list(globals().items()) if name.startswith("test_")]

if __name__ == "__main__":
    import test_kernel

    test_kernel.main(TESTS)
