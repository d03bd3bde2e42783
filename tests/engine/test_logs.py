"""The two logs of a training."""

import json

from actionzoo.engine.logs import RunLog, read_log


def test_a_resumed_log_drops_the_epochs_that_run_again(tmp_path):
    log = RunLog(tmp_path, "now")
    log.begin({"seed": 0}, finished_epochs=0)
    for epoch in (1, 2):
        log.event({"mode": "train", "epoch": epoch, "iter": 2, "loss": 1 / 3})
    with (tmp_path / "now.log.json").open("a") as file:
        file.write('{"mode": "tra')  # a kill cut the line off
    log.begin({"seed": 0}, finished_epochs=1)
    log.event({"mode": "train", "epoch": 2, "iter": 2, "loss": 0.5})
    assert list(read_log(log.json_path)) == [
        {"mode": "train", "epoch": 1, "iter": 2, "loss": 0.33333},
        {"mode": "train", "epoch": 2, "iter": 2, "loss": 0.5},
    ]
    log.event({"mode": "train", "epoch": 2, "iter": 4, "loss": 0.25})
    log.begin({"seed": 0}, finished_epochs=1, finished_steps=3)
    assert [(line["epoch"], line["iter"]) for line in read_log(log.json_path)] == [(1, 2), (2, 2)]
    assert json.loads(log.json_path.read_text().splitlines()[0]) == {"seed": 0}
