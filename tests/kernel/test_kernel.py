"""The kernel, tried as a notebook would: live displays, honest errors, gentle interrupts, shared statics.

    python tests/kernel/test_kernel.py     (the kernel must be installed for this Python; ./x test does it)
"""

import os
import sys
import time
import traceback

import nbformat
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

LOOP = """
let mut turns = 0_u64;
println!("looping");
while !progress::stop_requested() { turns += 1; std::thread::sleep(std::time::Duration::from_millis(20)); }
turns > 0
"""


class Kernel:
    """One kernel and a client to it; `run` returns the reply and the outputs with their times."""

    def __init__(self, **environment):
        self.environment = os.environ | environment

    def __enter__(self):
        self.manager = KernelManager(kernel_name="cltlab")
        self.started = time.time()
        self.manager.start_kernel(env=self.environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        self.ready = time.time() - self.started
        return self

    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code, timeout=180, on_output=lambda message: None, answer=None):
        """`answer` gets each question of the cell and gives its reply; without it the front end cannot answer."""
        outputs = []

        def keep(message):
            outputs.append((time.time(), message["msg_type"], message["content"]))
            on_output(message)

        def on_question(message):
            self.client.input(answer(message["content"]))

        reply = self.client.execute_interactive(code, timeout=timeout, output_hook=keep, allow_stdin=answer is not None, stdin_hook=on_question)
        return reply["content"], [output for output in outputs if output[1] not in ("status", "execute_input")]

    def value(self, code):
        reply, outputs = self.run(code)
        assert reply["status"] == "ok", reply
        return [content["data"]["text/plain"] for _, kind, content in outputs if kind == "execute_result"][-1]


def traceback_of(outputs):
    (content,) = [content for _, kind, content in outputs if kind == "error"]
    return "\n".join(content["traceback"])


def test_kernel_info_comes_before_the_engine(kernel):
    print(f"  kernel_info after {kernel.ready:.2f} s")
    assert kernel.ready < 10


def test_first_result_and_latency(kernel):
    assert kernel.value("auto_device()?") == "Cpu"
    print(f"  kernel start to first library result {time.time() - kernel.started:.1f} s")
    seconds = []
    for index in range(10):
        begun = time.time()
        kernel.value(f"let t{index} = Tensor::zeros((2, {index + 1}), DType::F32, &Device::Cpu)?; t{index}.dims().to_vec()")
        seconds.append(time.time() - begun)
    print(f"  median of ten cells {sorted(seconds)[5]:.2f} s")


def test_updates_arrive_while_the_cell_runs(kernel):
    code = """
    let place = cltlab::notebook::Display::new("<b>0</b>", "0");
    for n in 1..6 { std::thread::sleep(std::time::Duration::from_millis(300)); place.update(&format!("<b>{n}</b>"), &n.to_string()); println!("line {n}"); }
    """
    _, outputs = kernel.run(code)
    updates = [at for at, kind, _ in outputs if kind == "update_display_data"]
    lines = [content["text"] for _, kind, content in outputs if kind == "stream" and content["name"] == "stdout"]
    assert len(updates) == 5 and updates[-1] - updates[0] > 0.9, updates
    assert "".join(lines).split() == "line 1 line 2 line 3 line 4 line 5".split(), lines
    (shown,) = [content for _, kind, content in outputs if kind == "display_data"]
    assert shown["data"]["text/html"] == "<b>0</b>" and shown["transient"]["display_id"]


def test_errors_are_errors(kernel):
    reply, outputs = kernel.run('let kept = 5; TrainConfig { lr: 0.0, ..TrainConfig::default() }.validate()?;')
    assert reply["status"] == "error" and "TrainConfig::lr: got 0" in traceback_of(outputs)
    reply, outputs = kernel.run('panic!("over the edge")')
    assert reply["status"] == "error" and reply["ename"] == "Panic" and "over the edge" in traceback_of(outputs)
    reply, outputs = kernel.run('let x = 1;\nlet y: i32 = "é";')
    text = traceback_of(outputs)
    assert reply["status"] == "error" and "E0308" in text and "line 2" in text and "expected `i32`" in text, text
    assert kernel.value("1 + 1") == "2"


def test_nbclient_stops_at_an_error(kernel):
    cells = ['std::fs::read("/nowhere")?;', 'println!("not reached")']
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in cells])
    try:
        NotebookClient(notebook, kernel_name="cltlab", timeout=180).execute()
    except CellExecutionError as error:
        assert "No such file" in str(error)
    else:
        raise AssertionError("nbclient ran on")
    assert not notebook.cells[1].get("outputs")


def test_gradients_across_cells(kernel):
    kernel.run("let a = Var::new(&[2f32, 3.], &Device::Cpu)?;")
    kernel.run("let b = Var::new(&[5f32, 7.], &Device::Cpu)?;")
    kernel.run("let loss = (a.as_tensor() * b.as_tensor())?.sum_all()?;")
    kernel.run("let gradients = loss.backward()?;")
    assert kernel.value("gradients.get(&a).unwrap().to_vec1::<f32>()?") == "[5.0, 7.0]"
    assert kernel.value("gradients.get(&b).unwrap().to_vec1::<f32>()?") == "[2.0, 3.0]"
    assert kernel.value("a.id() == b.id()") == "false"


def interrupt_when_looping(kernel, times=1):
    def on_output(message):
        if "looping" in message["content"].get("text", ""):
            for _ in range(times):
                kernel.manager.interrupt_kernel()
                time.sleep(0.3)

    return on_output


def test_interrupt_keeps_variables(kernel):
    kernel.run('let treasure = "still here".to_string();')
    reply, _ = kernel.run(LOOP, on_output=interrupt_when_looping(kernel))
    assert reply["status"] == "ok", reply
    assert kernel.value("treasure") == '"still here"'
    assert kernel.value("progress::stop_requested()") == "false"


def test_interrupt_in_training_keeps_variables(kernel):
    code = """
    fn noise(seed: u32) -> Vec<f32> { (0..2048 * 16_u32).map(|i| ((i.wrapping_mul(2654435761).wrapping_add(seed) >> 8) % 1000) as f32 / 500.0 - 1.0).collect() }
    let activations = Activations::from_memory(vec![noise(1), noise(2)], vec![noise(3), noise(4)], 16)?;
    let clt_config = CltConfig { layers: 2, width: 16, features: 64, ..CltConfig::default() };
    let mut trainer = Trainer::new(&activations, &clt_config, &TrainConfig { steps: 1_000_000, batch_tokens: 256, ..TrainConfig::default() })?;
    """
    reply, outputs = kernel.run(code)
    assert reply["status"] == "ok", traceback_of(outputs)
    reply, outputs = kernel.run('println!("looping"); let history = trainer.run()?;', on_output=interrupt_when_looping(kernel))
    assert reply["status"] == "ok", traceback_of(outputs)
    assert kernel.value("history.stopped && trainer.steps() > 0 && trainer.clt().is_ok()") == "true"


def test_stuck_cell_is_ended_and_losses_are_named(kernel):
    kernel.run("let lost_thing = 1;")
    begun = time.time()
    stuck = 'println!("looping"); loop { std::thread::sleep(std::time::Duration::from_millis(10)); }'
    reply, outputs = kernel.run(stuck, on_output=interrupt_when_looping(kernel))
    assert reply["status"] == "error" and "lost_thing" in traceback_of(outputs), reply
    assert 4 < time.time() - begun < 30
    assert kernel.value("2 + 2") == "4"
    begun = time.time()
    reply, _ = kernel.run(stuck, on_output=interrupt_when_looping(kernel, times=2))
    assert reply["status"] == "error" and time.time() - begun < 10
    assert kernel.value("notebook.live") == "true"


def test_completion_and_inspection(kernel):
    code = "let config = TrainConfig::def"
    reply = kernel.client.complete(code, len(code), reply=True, timeout=60)["content"]
    assert any("default" in match for match in reply["matches"]), reply
    reply = kernel.client.inspect("Model", 5, reply=True, timeout=60)["content"]
    assert reply["found"] and "language model" in reply["data"]["text/plain"], reply
    asked = kernel.client.is_complete("fn f() {")
    while (reply := kernel.client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != asked:
        pass
    assert reply["content"]["status"] == "incomplete"


def test_two_kernels_at_once(kernel):
    with Kernel() as other:
        first = other.client.execute("let shared_name = 111; shared_name")
        kernel.run("let shared_name = 222;")
        while (reply := other.client.get_shell_msg(timeout=180))["parent_header"].get("msg_id") != first:
            pass
        assert reply["content"]["status"] == "ok", reply["content"]
        assert other.value("shared_name") == "111"
        assert kernel.value("shared_name") == "222"


def test_a_kernel_that_cannot_start_says_why(_):
    with Kernel(PATH="/nowhere") as broken:
        reply, outputs = broken.run("1 + 1")
        assert reply["status"] == "error"
        assert "rustup.rs" in traceback_of(outputs), outputs


def main(tests):
    tests = [(name, test) for name, test in tests if all(part in name for part in sys.argv[1:])]
    passed, failed = 0, 0
    with Kernel() as kernel:
        for name, test in tests:
            begun = time.time()
            try:
                test(kernel)
                passed += 1
                print(f"ok      {name} ({time.time() - begun:.1f} s)", flush=True)
            except Exception:
                failed += 1
                print(f"FAILED  {name} ({time.time() - begun:.1f} s)\n{traceback.format_exc()}", flush=True)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    import test_protocol

    main([(name, test) for name, test in list(globals().items()) if name.startswith("test_") and callable(test)] + test_protocol.TESTS)
