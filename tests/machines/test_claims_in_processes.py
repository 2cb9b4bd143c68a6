"""The claims measured by two processes."""

from minialign.lab.claims import runner


def test_two_workers_give_the_verdicts_of_all_claims_in_order_and_make_a_shared_stage_once(tmp_path):
    ids = ["bitfit", "adapter-size"]  # 12 and 4 tunings, and both need the full one of the farther task
    found = runner.run_claims(ids, tmp_path, 1, True, workers=2)
    assert [verdict["id"] for verdict in found] == ids and all(verdict["cpu_seconds"] > 0 for verdict in found)
    made = [path.parent.name.rsplit("-", 1)[0] for path in (tmp_path / "cache").glob("*/made")]
    assert made == ["tuned"] * 15
    assert all((tmp_path / id / "figure.png").exists() for id in ids)
