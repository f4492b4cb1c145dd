"""The wheel is complete: conf/, the bundled model and pairs, the console script, from any working directory."""

import os
import subprocess
import sys

from tests.conftest import ROOT


def test_the_console_script_of_an_installed_wheel_trains_from_another_folder(tmp_path, few_reviews):
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    built = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "dist")]
    subprocess.run(built, check=True)
    (wheel,) = (tmp_path / "dist").glob("lightning_dpo-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    assert len(list((site / "lightning_dpo" / "conf").rglob("*.yaml"))) == len(list((ROOT / "conf").rglob("*.yaml")))

    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    where = [sys.executable, "-c", "import lightning_dpo; print(lightning_dpo.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(site)), "the wheel, not the clone, is tested"
    command = [sys.executable, str(site / "bin" / "lightning-dpo"), "train", "trainer.max_steps=1", "samples.n=0"]
    options = [f"data.train={few_reviews}", f"data.val={few_reviews}", "output_dir=run", "reference.cache_dir=cache"]
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
