"""Notebook cells on a GPU, here the emulated one: python tests/cuda/notebook.py [EMULATED], with the Python whose Jupyter
has the kernel "Rust (cltlab, CUDA)" (./x build-cuda --kernel installs it into .cltlab/venv).

EMULATED is the folder that build.py --candle made; `gpu` in its place takes the machine's own card.
"""

import os
import pathlib
import sys
import time

from jupyter_client.manager import KernelManager

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
failed = []


def check(what, passed, words=""):
    print(f"{'ok    ' if passed else 'FAILED'}  {what}" + (f"\n{words}" if not passed else ""), flush=True)
    if not passed:
        failed.append(what)


class Kernel:
    def __init__(self, libraries):
        self.environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH" or libraries == "gpu"}
        if libraries and libraries != "gpu":
            self.environment["LD_LIBRARY_PATH"] = str(libraries)

    def __enter__(self):
        self.manager = KernelManager(kernel_name="cltlab-cuda")
        self.manager.start_kernel(env=self.environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        return self

    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, code):
        """The last text that the cell showed, all its words, and the displays that were redrawn while it ran."""
        outputs = []
        reply = self.client.execute_interactive(code, timeout=300, output_hook=lambda message: outputs.append((message["msg_type"], message["content"])))
        texts = [content["data"].get("text/plain", "") for kind, content in outputs if kind == "execute_result"]
        words = "\n".join(["\n".join(content.get("traceback", [])) + content.get("text", "") for _, content in outputs])
        drawn = [content["data"] for kind, content in outputs if kind in ("display_data", "update_display_data")]
        return (texts or [""])[-1] if reply["content"]["status"] == "ok" else None, words, drawn


TRAIN = """
fn wave(n: usize) -> Vec<Vec<f32>> { (0..2).map(|l| (0..96 * 64).map(|i| ((i * (7 + l) + n) as f32 * 0.37).sin()).collect()).collect() }
let activations = Activations::from_memory(wave(0), wave(5), 64)?;
let shape = CltConfig { layers: 2, width: 64, features: 64, activation: Activation::TopK { k: 4 }, ..CltConfig::default() };
let config = TrainConfig { steps: 12, batch_tokens: 48, device: cltlab::train::TrainDevice::DEVICE, ..TrainConfig::default() };
let mut trainer = Trainer::new(&activations, &shape, &config)?;
let history = trainer.run()?;
let losses_DEVICE = history.samples.iter().map(|sample| sample.reconstruction).collect::<Vec<f64>>();
history
"""


def main():
    libraries = sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/emulated"
    begun = time.time()
    with Kernel(libraries) as kernel:
        text, words, _ = kernel.run("auto_device()?")
        check(f"a cell finds the GPU {time.time() - begun:.0f} s after the kernel's start: {text}", text is not None and "Cuda" in text, words)
        begun = time.time()
        kernel.run("let one = 1 + 1; one")
        check(f"a cell takes {time.time() - begun:.1f} s", True)
        kernel.run(TRAIN.replace("DEVICE", "Cpu"))
        text, words, drawn = kernel.run(TRAIN.replace("DEVICE", "Cuda"))
        pictures = [data for data in drawn if any("svg" in str(value) for value in data.values())]
        check(f"a cell trains on the GPU with its curve drawn {len(pictures)} times", text is not None and "12 steps" in text and len(pictures) >= 1, words)
        text, words, _ = kernel.run("losses_Cpu.iter().zip(&losses_Cuda).map(|(a, b)| (a - b).abs() / a).fold(0.0, f64::max)")
        check(f"its losses are the CPU's to {text}", text is not None and float(text) < 1e-4, words)
    if libraries != "gpu":
        with Kernel(None) as kernel:
            _, words, _ = kernel.run("cltlab::device::cuda(0)?")
            check("without a driver: an error with what to do", "CUDA" in words and "doctor" in words, words)
            text, words, _ = kernel.run("auto_device()?")
            check(f"and the kernel lives, on the CPU: {text}", text is not None and "Cpu" in text, words)
    print(f"{len(failed)} failed" if failed else "all passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
