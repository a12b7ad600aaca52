"""Executes notebooks through the kernel "cltlab", strictly, and keeps the executed copy and its HTML.

    run_notebook.py NOTEBOOK... FOLDER [--headlines]

Any error output stops a notebook and fails the run. With --headlines the figures that tutorial 1
saved are printed and held against what a sound run must reach.
"""

import json
import os
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter


class Runner(NotebookClient):
    """nbclient, with one line per cell and a line now and then from live displays."""

    last_line = 0.0

    def process_message(self, msg, cell, cell_index):
        data = msg["content"].get("data", {})
        text = data.get("text/plain", "").strip().splitlines()
        if msg["msg_type"] == "update_display_data" and text and time.time() - self.last_line > 10:
            self.last_line = time.time()
            print(f"      {text[0][:110]}", flush=True)
        return super().process_message(msg, cell, cell_index)


def execute(path, folder):
    notebook = nbformat.read(path, as_version=4)
    runner = Runner(notebook, kernel_name="cltlab", timeout=1800, startup_timeout=300, resources={"metadata": {"path": os.path.dirname(os.path.abspath(path))}})
    code = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    started = {}

    def begin(cell, cell_index):
        started[cell_index] = time.time()
        first = next((line for line in cell.source.splitlines() if line and not line.startswith("//")), "")
        print(f"  cell {code.index(cell_index) + 1}/{len(code)}: {first[:80]}", flush=True)

    def end(cell, cell_index, execute_reply):
        print(f"      {time.time() - started[cell_index]:.1f} s", flush=True)

    runner.on_cell_execute = begin
    runner.on_cell_executed = end
    name = os.path.splitext(os.path.basename(path))[0]
    problem = None
    begun = time.time()
    print(f"{path}", flush=True)
    try:
        runner.execute()
    except (CellExecutionError, DeadKernelError, RuntimeError) as error:
        problem = str(error)
    os.makedirs(folder, exist_ok=True)
    executed = os.path.join(folder, name + ".ipynb")
    nbformat.write(notebook, executed)
    html, _ = HTMLExporter().from_notebook_node(notebook)
    with open(os.path.join(folder, name + ".html"), "w") as file:
        file.write(html)
    errors = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "error"]
    if errors and not problem:
        problem = "\n".join(errors[0].traceback)
    print(f"  {'FAILED' if problem else 'ok'} in {time.time() - begun:.0f} s: {executed}", flush=True)
    if problem:
        print(problem)
    return problem is None


def read(folder, name):
    with open(os.path.join(folder, name)) as file:
        return json.load(file)


def swapped(folder):
    """What the small model's CLT must reach: (what, figure, bound, whether it is a lower one). The card has the figures of one
    machine; on another processor the training rounds otherwise, so the bounds are wider."""
    report, scores, figures = read(folder, "report.json"), read(folder, "graph.json")["metadata"], read(folder, "swaps.json")["figures"]
    fvu = [layer["fvu"] for layer in report["layers"]]
    return [
        ("held-out FVU", sum(fvu) / len(fvu), 0.10, False),
        ("top-1 agreement of the replacement model", report["top1"], 0.75, True),
        ("replacement score of the Dallas graph", scores["replacement_score"], 0.55, True),
        ("swaps that give the new state's answer", figures["new_answers"], 0.8, True),
        ("swaps, predicted against measured r", figures["predicted_measured"], 0.87, True),
        ("random features that give it", figures["control_new_answers"], 0.1, False),
        ("random features, the swaps' predictions against measured r", figures["predicted_control_measured"], 0.3, False),
    ]


def headlines(folder):
    """Prints what tutorial 1 measured; returns what falls short."""
    history = read(folder, "history.json")["samples"]
    report = read(folder, "report.json")
    graph = read(folder, "graph.json")
    check = read(folder, "check.json")
    window = max(1, len(history) // 10)
    mean = lambda samples: sum(sample["reconstruction"] for sample in samples) / len(samples)
    first, last = mean(history[:window]), mean(history[-window:])
    fvu = [layer["fvu"] for layer in report["layers"]]
    print(f"  training: {len(history)} steps, {history[-1]['tokens']} tokens, reconstruction loss {first:.3g} -> {last:.3g}")
    print(f"  held out: FVU mean {sum(fvu) / len(fvu):.3f} (worst layer {max(fvu):.3f}), L0 {sum(layer['l0'] for layer in report['layers']) / len(fvu):.1f} a layer")
    print(f"  replacement: {json.dumps({key: value for key, value in report.items() if isinstance(value, float)})}")
    print(f"  graph: {len(graph['nodes'])} nodes, {len(graph['links'])} links")
    print(f"  intervention check: {json.dumps(check)}")
    for name in sorted(os.listdir(folder)):
        print(f"  {os.path.join(folder, name)}")
    short = []
    if not last < first:
        short.append("the loss did not fall")
    if not max(fvu) < 1.0:
        short.append("FVU is not below 1.0 at every layer")
    if not len(graph["nodes"]) > 50:
        short.append("the graph has 50 nodes or fewer")
    if not check["relative_error"] <= 1e-3:
        short.append("the graph's weights miss the intervention check at 1e-3")
    if os.path.exists(os.path.join(folder, "swaps.json")):
        for what, figure, bound, lower in swapped(folder):
            print(f"  {what}: {figure:.3f} ({'at least' if lower else 'at most'} {bound})")
            if not (figure >= bound if lower else figure <= bound):
                short.append(f"{what} is {figure:.3f}, {'at least' if lower else 'at most'} {bound} wanted")
    return short


def main():
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    *notebooks, folder = arguments
    failed = [path for path in notebooks if not execute(path, folder)]
    print(f"{len(notebooks) - len(failed)} passed, {len(failed)} failed")
    if not failed and "--headlines" in sys.argv:
        short = headlines(folder)
        for line in short:
            print(f"  short: {line}")
        failed += short
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
