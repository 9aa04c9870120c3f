"""The training loop: it learns, repeats itself, goes on where it stopped and ends where numbers do."""

from __future__ import annotations

import numpy as np
import pytest

from edgellm.convert.distill.reduce import Model
from edgellm.convert.distill.reduction import Reduction
from edgellm.convert.distill.settings import Settings
from edgellm.convert.distill.state import state_path
from edgellm.convert.distill.texts import Rows
from edgellm.convert.distill.train import Progress, Trainer
from edgellm.errors import InputError, ModelError, NumericalError, UsageError
from tests.convert.distill.models import golden, network_of, random_rows, read
from tests.convert.distill.test_reduce import smaller

SETTINGS = Settings(length=12, steps=12, batch_size=4, micro_batch=2, learning_rate=3e-3, eval_every=6, save_seconds=0)


def trainer(path=None, settings: Settings = SETTINGS, identity: str = "a") -> Trainer:
    teacher = read(golden("llama-gqa-head-dim"))
    rows = random_rows(teacher, 20, settings.length + 1)
    student: Model = smaller(teacher, Reduction(intermediate_size=teacher.program.config.intermediate_size // 2), rows)
    networks = [network_of(model, settings.length) for model in (student, teacher)]
    return Trainer(*networks, Rows(rows[:16], rows[16:]), settings, path, identity)


def test_it_learns_what_the_teacher_says():
    run = trainer(settings=Settings(**{**vars(SETTINGS), "steps": 40, "alpha": 1.0}))
    seen: list[Progress] = []
    run.run(seen.append)
    losses = [progress.loss for progress in seen]
    assert losses[-1] < 0.5 * losses[0]
    assert [row["step"] for row in run.history] == [6, 12, 18, 24, 30, 36, 40]
    assert all(row["kl"] > 0 for row in run.history)
    assert [progress.step for progress in seen if progress.measured] == [6, 12, 18, 24, 30, 36, 40]


def test_a_run_that_goes_on_ends_as_one_that_never_stopped(tmp_path):
    whole = trainer()
    whole.run()
    path = state_path(tmp_path / "out")

    class Killed(Exception):
        pass

    def kill(progress: Progress) -> None:
        if progress.step == 7:
            raise Killed

    with pytest.raises(Killed):
        trainer(path).run(kill)
    again = trainer(path)
    again.resume()
    assert again.step == 7
    again.run()
    for name, array in whole.student.parameters.arrays.items():
        np.testing.assert_array_equal(again.student.parameters.arrays[name], array)
    assert again.history == whole.history


def test_micro_batches_change_only_rounding():
    runs = [trainer(settings=Settings(**{**vars(SETTINGS), "micro_batch": size, "steps": 2})) for size in (1, 4)]
    for run in runs:
        run.run()
    one, four = (run.student.parameters.arrays for run in runs)
    for name, array in one.items():
        np.testing.assert_allclose(array, four[name], atol=2e-4, err_msg=name)


def test_a_measured_step_changes_nothing():
    run = trainer()
    before = run.student.parameters.digest()
    assert run.seconds_a_step() > 0
    assert run.student.parameters.digest() == before
    assert all(not grad.any() for grad in run._grads.values())


def test_numbers_that_end_end_the_run_and_keep_the_state(tmp_path):
    path = state_path(tmp_path / "out")
    run = trainer(path)

    def break_weights(progress: Progress) -> None:
        if progress.step == 5:
            run.student.parameters.arrays["norm"][0] = np.nan

    with pytest.raises(NumericalError, match=r"step 5.*--learning-rate"):
        run.run(break_weights)
    again = trainer(path, Settings(**{**vars(SETTINGS), "learning_rate": 1e-4}))
    again.resume()
    assert again.step == 5
    assert all(np.isfinite(array).all() for array in again.student.parameters.arrays.values())


def test_a_state_of_another_run_is_refused(tmp_path):
    path = state_path(tmp_path / "out")
    trainer(path).save()
    with pytest.raises(ModelError, match="another run"):
        trainer(path, identity="b").resume()
    with pytest.raises(InputError):
        trainer(state_path(tmp_path / "none")).resume()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError):
        trainer(path).resume()


@pytest.mark.parametrize(
    ("key", "value"),
    [("steps", -1), ("alpha", 1.5), ("temperature", 0.0), ("length", 1), ("micro_batch", 9), ("heal", "most"),
     ("learning_rate", float("nan")), ("held_out", 1.0)],
)  # fmt: skip
def test_settings_out_of_range_are_refused(key: str, value: object):
    with pytest.raises(UsageError, match="--" + key.replace("_", "-")):
        Settings(**{key: value})
