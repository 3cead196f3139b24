"""Why the shipped run trains under JPEG and blur: accuracy on validation images, which is all that decided it.

``python tests/benchmarks/bench_augment.py`` (needs the demo benchmark; ten minutes on two cores, most of it
features). Five folds; the images are the held-in network's and both kinds of real ones; both classes weigh the same.
Of the perturbations, only JPEG 75 and blur 1 are trained on. Prints a table, mean and 95 % half-width over folds.
"""

from __future__ import annotations

import pandas as pd
from tqdm import tqdm

from afp import detectors
from afp.data.manifest import read_manifest
from afp.data.splits import use_fold
from afp.paths import demo_manifest
from afp.results import runs
from afp.results.metrics import compute
from afp.studies.training_size import half_width

PERTURBATIONS = ("none", "jpeg:75", "jpeg:50", "blur:1", "blur:2", "rescale:0.5", "rescale:0.5+jpeg:75")


def main() -> None:
    frame, rows = read_manifest(demo_manifest()), []
    shipped = detectors.load(runs.default_run()).augment
    for fold in tqdm(range(5), desc="folds"):
        part = use_fold(frame, fold)
        train, validation = (part[part["split"] == split] for split in ("train", "validation"))
        for name, augment in (("plain", ()), ("augmented", shipped)):
            probe = detectors.create("linear-probe", augment=augment).fit(train, validation, progress=False)
            for perturbation in PERTURBATIONS:
                scores = probe.score(validation, perturbation)
                found = compute(validation["label"], scores, probe.threshold_)
                accuracy = (found["real_accuracy_val"] + found["fake_accuracy_val"]) / 2
                rows.append({"training": name, "perturbation": perturbation, "accuracy": float(accuracy)})
    table = pd.DataFrame(rows).groupby(["perturbation", "training"], sort=False)["accuracy"]
    print(table.agg(["mean", half_width]).round(3).unstack().to_string())


if __name__ == "__main__":
    main()
