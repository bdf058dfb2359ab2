"""Two processes of ``transformers.Trainer`` train what one does, and write it once.

This file is also the program that the processes run.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer

from ptuning.model import PTuningModel, state
from tiny import tiny
from trainers import CONFIGS, accuracy, examples, numbers, same, steps, trainer
from warm import Programs

PARTS = {"deep": 1, "input, encoded": 2}
"""How many batches are accumulated for one step, by the name of the prompt."""

STEPS, SAVED = 5, 3


def made_for(processes: int, name: str, folder: Path) -> Trainer:
    """Steps of eight rows, whoever computes them."""
    torch.manual_seed(1)
    return trainer(
        folder / name,
        CONFIGS[name],
        held=examples(16, turned=True),
        measure=accuracy,
        max_steps=STEPS,
        learning_rate=0.1,
        per_device_train_batch_size=8 // processes // PARTS[name],
        gradient_accumulation_steps=PARTS[name],
        per_device_eval_batch_size=8 // processes,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        metric_for_best_model="loss",
        load_best_model_at_end=True,
    )


def learn(processes: int, name: str, folder: Path) -> dict[str, Any]:
    """Train, and say what came of it."""
    made = made_for(processes, name, folder)
    made.train()
    made.save_model()
    torch.manual_seed(4)
    told = made.predict(examples(11))  # not a multiple of the batches, nor of the processes
    return {
        "steps": [[each["loss"], each["grad_norm"]] for each in steps(made)],
        "held": [each["eval_loss"] for each in made.state.log_history if "eval_loss" in each],
        "best": made.state.best_global_step,
        "predictions": told.predictions.tolist(),
        "labels": told.label_ids.tolist(),
    }


def main(folder: Path, names: list[str]) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    written, save = [], safetensors.torch.save_file

    def saving(tensors: dict[str, Tensor], file: Any, *rest: Any, **options: Any) -> None:
        written.append(str(file))
        save(tensors, file, *rest, **options)

    safetensors.torch.save_file = saving
    found = {name: learn(processes, name, folder) for name in names}
    safetensors.torch.save_file = save
    for name in names:
        made = made_for(processes, name, folder / "wrapped")
        made.train(resume_from_checkpoint=str(folder / name / f"checkpoint-{SAVED}"))
        wrapped = made.model_wrapped
        assert isinstance(wrapped, DistributedDataParallel)
        save(dict(made.model.state_dict()), folder / f"{name}, of {rank}.safetensors")
        # What the wrapper says of itself is held against the model inside, too.
        wrapped.load_state_dict(wrapped.state_dict())
        if rank == 0:
            (folder / f"{name}, wrapped").mkdir()
            save(dict(wrapped.state_dict()), folder / f"{name}, wrapped" / state.FILE)
    (folder / f"{rank}.json").write_text(json.dumps({"runs": found, "written": written}))


# -------------------------------------------------------------------------------------- the test


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {name: learn(1, name, folder) for name in CONFIGS}


# With --cpu it starts several processes through MPI alone; the Trainer's use_cpu keeps it off any GPU. The
# processes are torchrun's.
LAUNCH = (
    "accelerate.commands.launch",
    *("--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"),
    *("--mixed_precision=no", "--dynamo_backend=no"),
)


@pytest.mark.slow
def test_two_processes_train_what_one_does(alone: dict[str, Any], tmp_path: Path, programs: Programs) -> None:
    programs.ranks([__file__, str(tmp_path), *CONFIGS], tmp_path)
    check(list(CONFIGS), alone, tmp_path)


@pytest.mark.slow
def test_so_do_two_that_accelerate_launches(
    alone: dict[str, Any], tmp_path: Path, programs: Programs
) -> None:
    done = programs.run(
        ["-m", *LAUNCH, __file__, str(tmp_path), "deep"],
        tmp_path,
        env={"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:].decode()
    check(["deep"], alone, tmp_path)


def check(names: list[str], alone: dict[str, Any], tmp_path: Path) -> None:
    """What both processes said and wrote is what one did."""
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    # Every checkpoint and the last save of each run, by the first process alone.
    assert len(first["written"]) == (STEPS + 1) * len(names)
    assert second["written"] == []
    for name in names:
        one, two = alone[name], first["runs"][name]
        assert len(one["steps"]) == len(one["held"]) == STEPS
        assert torch.tensor(two["steps"]) == pytest.approx(torch.tensor(one["steps"]), abs=1e-5)
        assert two["held"] == pytest.approx(one["held"], abs=1e-5)
        assert two["best"] == one["best"] < STEPS
        assert two["labels"] == one["labels"]
        torch.testing.assert_close(torch.tensor(two["predictions"]), torch.tensor(one["predictions"]))
        assert second["runs"][name] == two  # the best came to both processes
        check_folders(name, tmp_path)


def check_folders(name: str, folder: Path) -> None:
    """What two processes wrote is opened, and gone on from, by one and by two."""
    best = PTuningModel.from_pretrained(folder / name, backbone=tiny("bert"))
    wrapped = PTuningModel.from_pretrained(folder / f"{name}, wrapped", backbone=tiny("bert"))
    ends = [safetensors.torch.load_file(folder / f"{name}, of {rank}.safetensors") for rank in (0, 1)]
    assert same(*ends)
    assert same(ends[0], dict(wrapped.state_dict()))
    assert same(ends[0], dict(best.state_dict()))  # resumed by two, to the bit
    resumed = made_for(1, name, folder / "resumed")
    resumed.train(resume_from_checkpoint=str(folder / name / f"checkpoint-{SAVED}"))
    by_one = PTuningModel.from_pretrained(
        folder / "resumed" / name / f"checkpoint-{STEPS}", backbone=tiny("bert")
    )
    by_two = PTuningModel.from_pretrained(folder / name / f"checkpoint-{STEPS}", backbone=tiny("bert"))
    torch.testing.assert_close(
        numbers(by_one.state_dict()), numbers(by_two.state_dict()), rtol=1e-4, atol=1e-4
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
