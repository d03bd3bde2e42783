import pytest

from actionzoo.engine.schedule import learning_rate, scaled_lr
from tests.models.reference import read_reference


def test_warm_up_rises_linearly_from_its_ratio():
    rates = [
        learning_rate(
            step, 2, lr=1.0, policy="step", epochs=9, warmup_epochs=2, warmup_ratio=0.2, milestones=(8,), gamma=0.1
        )
        for step in range(5)
    ]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_steps_take_effect_after_their_epoch():
    rates = [
        learning_rate(
            step, 1, lr=1.0, policy="step", epochs=4, warmup_epochs=0, warmup_ratio=0.1, milestones=(2, 3), gamma=0.1
        )
        for step in range(4)
    ]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_cosine_holds_its_value_for_an_epoch_and_does_not_reach_its_end():
    rates = [
        learning_rate(step, 2, lr=1.0, policy="cosine", epochs=2, warmup_epochs=0, warmup_ratio=0.1)
        for step in range(4)
    ]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.5])


def test_the_learning_rate_grows_with_the_batch():
    assert scaled_lr(0.1, batch=8, reference_batch=64) == pytest.approx(0.0125)


@pytest.mark.parametrize("name", ["cosineannealing_lr0.08_180e", "step_lr0.000125_58e", "cosineannealing_lr0.1_256e"])
def test_every_step_is_the_references(name):
    known = read_reference("schedules/lr.json")["schedules"][name]
    config = known["lr_config"]
    settings = {
        "policy": "cosine" if config["policy"] == "CosineAnnealing" else "step",
        "epochs": known["total_epochs"],
        "warmup_epochs": config["warmup_iters"],
        "warmup_ratio": config.get("warmup_ratio", 0.1),
        "milestones": tuple(config.get("step", ())),
        "gamma": 0.1,
    }
    assert len(known["points"]) > 1000
    for step, lr in known["points"]:
        # points carry 12 digits
        assert learning_rate(step, known["iters_per_epoch"], lr=known["base_lr"], **settings) == pytest.approx(
            lr, rel=1e-9
        )
