"""The deployments: their forms, what they build, and what they call it."""

from pathlib import Path

import pytest

from flows.server.process import client_settings
from tests.flows.pretended_zoo import make_zoo

MODEL = "slowfast_r50_video_4x16x1_256e_kinetics400_rgb"
OTHER = "ircsn_bnfrozen_r50_32x2x1_180e_kinetics400_rgb"


@pytest.fixture
def project(tmp_path) -> Path:
    return make_zoo(tmp_path / "zoo")


@pytest.mark.slow
def test_what_people_choose_is_built_named_and_tagged(
    project, serve, order, own_environment, key_of, api, wait_for, port
):
    """One server for the whole story, because a start takes many seconds."""
    own_environment["CUDA_VISIBLE_DEVICES"] = "2,3"
    params, before = project / "params.yaml", (project / "params.yaml").read_bytes()
    _, log = serve(port)
    server = api(client_settings(port, key_of(project)))

    def newest() -> dict:
        return server.post("/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_DESC", "limit": 1}).json()[0]

    # A wrong value is refused: no flow run is made.
    said = order(log, "zoo/train", """-p models='["slowfst_r50_video"]'""")
    assert said.returncode == 1 and "is not one of" in said.stdout + said.stderr
    assert server.post("/flow_runs/filter", json={}).json() == []

    # What only the whole of params.yaml can judge fails at once, with a sentence.
    said = order(log, "zoo/train", """-p models='["r50_4x16x1"]' --watch""")
    assert said.returncode == 1
    assert "part of the names of 3 models; give more of one" in newest()["state"]["message"]
    assert not (project / "dvc.lock").exists()

    # A dry run of another data set leaves params.yaml as it was.
    said = order(log, "zoo/zoo", """-p models='["ipcsn_*"]' -p data=mirror -p dry_run=true --watch""")
    assert said.returncode == 0, log.read_text()
    assert newest()["name"] == "zoo 3 models, ipcsn_* · mirror · dry run"
    assert "11 stages would be built" in newest()["state"]["message"]
    assert params.read_bytes() == before and not (project / "dvc.lock").exists()

    # Two runs go side by side, each on its GPU; a third, of another data set, waits for both, and says so.
    assert order(log, "zoo/row", f"""-p targets='["train@{OTHER}"]'""").returncode == 0
    assert order(log, "zoo/train", """-p models='["slowfast_r50_video"]'""").returncode == 0
    wait_for(lambda: (project / f"begun_{OTHER}").exists() and (project / f"begun_{MODEL}").exists(), 120)
    assert order(log, "zoo/train", f"""-p models='["{MODEL}"]' -p data=mirror""").returncode == 0
    wait_for(lambda: newest()["state_name"] == "Waiting", 120)
    assert newest()["state_type"] == "PENDING"
    assert newest()["state"]["message"].startswith("waits for the runs that build demo in this project; mirror")
    assert params.read_bytes() == before
    (project / "go").touch()

    def ended() -> list[dict]:
        runs = server.post("/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_DESC", "limit": 3}).json()
        return runs if all(run["state_name"] == "Completed" for run in runs) else []

    wait_for(ended, 180)
    third, second, first = ended()
    assert [run["name"] for run in (first, second, third)] == [
        f"train@{OTHER}",
        f"train {MODEL.removesuffix('_kinetics400_rgb')}… · demo",
        f"train {MODEL.removesuffix('_kinetics400_rgb')}… · mirror",
    ]
    assert set(second["tags"]) == {"actionzoo", "models", "data:demo", f"model:{MODEL}"}
    assert set(third["tags"]) == {"actionzoo", "models", "data:mirror", f"model:{MODEL}"}
    assert set(first["tags"]) == {"actionzoo", "models", "data:demo", f"model:{OTHER}"}
    assert set((project / "gpus").read_text().split()[:2]) == {"2", "3"}
    changed = set(params.read_text().splitlines()) - set(before.decode().splitlines())
    assert [line.split("#")[0].strip() for line in changed] == ["name: mirror"]

    # A model of one's own is in the menus by itself; a limit that an older version has set is gone with them.
    row = server.get("/deployments/name/zoo/row").json()["id"]
    assert server.patch(f"/deployments/{row}", json={"concurrency_limit": 1}).is_success
    recipe = before.decode().partition(f"\n  {MODEL}:")[2].partition("\n\n")[0]
    params.write_text(f"{params.read_text()}\n  mine_r50:{recipe}\n")
    wait_for(lambda: "the forms list the models and data sets that params.yaml has now" in log.read_text(), 60)
    assert server.get(f"/deployments/{row}").json()["global_concurrency_limit"] is None
    said = order(log, "zoo/reproduce", """-p models='["mine"]' --watch""")
    assert said.returncode == 0, log.read_text()
    assert (project / "reproduction" / "mine_r50.txt").exists()
