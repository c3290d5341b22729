"""What a model writes on clinical generation tasks of the classroom: overlap with the references, and faithfulness.

    python benchmarks/generation_report.py [--model NAME] [--tasks NAME ...] [--split validation] [--limit 40]

The last lines show outputs that mention an entity which stands neither in their source nor in their reference.
"""

import argparse

import torch

import workbench as wb
from workbench.evaluation import GENERATION, Task, faithfulness_report, generation_report
from workbench.evaluation.faithfulness import faithfulness
from workbench.evaluation.suites import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="classroom/clinical")
    parser.add_argument("--tasks", nargs="+", default=["note_section", "discharge_summary"], choices=list(GENERATION))
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = wb.load_model(options.model)
    for task in resolve("classroom", split=options.split, tasks=options.tasks, limit=options.limit):
        composite = Task(name=task.name, examples=task.rows(), metric="composite")
        outputs = wb.evaluate(model, tokenizer, [composite], progress=False).outputs[task.name]
        print(f"\n{options.model}, {task.name}, {options.split}\n")
        print(generation_report(task.rows(), outputs).to_markdown(index=False, floatfmt=".1f"), end="\n\n")
        print(faithfulness_report(task.rows(), outputs).to_markdown(index=False, floatfmt=".3f"), end="\n\n")
        found = [faithfulness(row, output.text) for row, output in zip(task.rows(), outputs, strict=True)]
        for one in [one for one in found if one.invented][:3]:
            print(f"{one.id}: invented {', '.join(one.invented)}; omitted {', '.join(one.omitted) or 'nothing'}")


if __name__ == "__main__":
    main()
