"""What measures the library runs, on small models; what it measures is asserted nowhere."""

from __future__ import annotations

from afp.paths import ROOT


def test_the_gpu_benchmark_runs_on_small_models(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "benchmarks"))
    monkeypatch.setattr("sys.argv", ["bench_gpu.py", "--tiny"])
    monkeypatch.setenv("AFP_DATA", str(tmp_path))
    import bench_gpu

    bench_gpu.main()
    rows = dict(line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:])
    for name in ("clip-finetune", "vlm-prompt"):
        assert rows[f"`{name}`: saved and loaded, largest difference of a score"] == "0"
        assert "images a second" in rows[f"`{name}`: training"]
    assert float(rows["the lowest cosine between both"]) > 0.999
