import pytest

from actionzoo.engine.schedule import Cosine, Step, learning_rate, scaled_lr
from tests.models.reference import read_reference


def rates(schedule, *, steps_per_epoch, steps):
    return [learning_rate(schedule, step, steps_per_epoch) for step in range(steps)]


def test_warm_up_rises_linearly_from_its_ratio():
    schedule = Step(lr=1.0, milestones=(8,), gamma=0.1, epochs=9, warmup_epochs=2, warmup_ratio=0.2)
    assert rates(schedule, steps_per_epoch=2, steps=5) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_milestones_take_effect_after_their_epoch():
    schedule = Step(lr=1.0, milestones=(2, 3), gamma=0.1, epochs=4, warmup_epochs=0, warmup_ratio=0.1)
    assert rates(schedule, steps_per_epoch=1, steps=4) == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_cosine_holds_its_value_for_an_epoch_and_does_not_reach_its_end():
    schedule = Cosine(lr=1.0, min_lr=0.0, epochs=2, warmup_epochs=0, warmup_ratio=0.1)
    assert rates(schedule, steps_per_epoch=2, steps=4) == pytest.approx([1.0, 1.0, 0.5, 0.5])


def test_the_learning_rate_grows_with_the_batch():
    assert scaled_lr(0.1, batch=8, reference_batch=64) == pytest.approx(0.0125)


@pytest.mark.parametrize("name", ["cosineannealing_lr0.08_180e", "step_lr0.000125_58e", "cosineannealing_lr0.1_256e"])
def test_every_step_is_the_references(name):
    known = read_reference("schedules/lr.json")["schedules"][name]
    config = known["lr_config"]
    common = {
        "lr": known["base_lr"],
        "epochs": known["total_epochs"],
        "warmup_epochs": config["warmup_iters"],
        "warmup_ratio": config.get("warmup_ratio", 0.1),
    }
    if config["policy"] == "CosineAnnealing":
        schedule = Cosine(min_lr=0.0, **common)
    else:
        schedule = Step(milestones=tuple(config["step"]), gamma=0.1, **common)

    assert len(known["points"]) > 1000
    for step, lr in known["points"]:
        # points carry 12 digits
        assert learning_rate(schedule, step, known["iters_per_epoch"]) == pytest.approx(lr, rel=1e-9)
