"""Seconds and memory for finding near-duplicates: ours, plain datasketch and datatrove's MinHash pipeline.

Equal parameters: word 5-grams, 14 bands of 8 rows (112 hashes), pairs of Jaccard 0.8 or more. Every measurement runs
in its own process, this file itself, so that its peak memory is its own and nothing is warm; seconds start after the
imports and after reading the texts. datatrove neither verifies its pairs nor is part of this project: its row needs
`pip install datatrove orjson regex spacy tokenizers 'xxhash<4'`, here or in the environment whose Python is named by
EV_DATATROVE_PYTHON.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

DATA = Path(__file__).parents[3] / "shared" / "data" / "dedup" / "news_30k.parquet"
SIZES = (7_500, 15_000, 30_578)
BANDS, ROWS, THRESHOLD = 14, 8, 0.8
N_WORKERS = 2
REPEATS = 3


def run_ours(texts: list[str]) -> int:
    from ev_platform.corpus.duplicates import similar_pairs

    return len(similar_pairs(texts, THRESHOLD, bands=BANDS, rows=ROWS))


def run_ours_by_default(texts: list[str]) -> int:
    """As the platform calls it: 72 bands of 4 rows, for the clusters of the split."""
    from ev_platform.corpus.duplicates import similar_pairs

    return len(similar_pairs(texts, 0.5))


def word_shingles(text: str) -> set[bytes]:
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[i : i + 5]).encode() for i in range(max(1, len(words) - 4))} if words else set()


def run_datasketch(texts: list[str]) -> int:
    """MinHash.bulk and an insertion session as the documentation shows them; candidates verified on the sets."""
    sets = [word_shingles(text) for text in texts]
    return _run_datasketch(sets, sets.__getitem__)


def run_datasketch_lean(texts: list[str]) -> int:
    """The same without keeping the sets: those of candidates are made again."""
    return _run_datasketch((word_shingles(text) for text in texts), lambda index: word_shingles(texts[index]))


def _run_datasketch(sets: Iterable[set[bytes]], get_set: Callable[[int], set[bytes]]) -> int:
    from datasketch import MinHash, MinHashLSH

    signatures = MinHash.bulk(sets, num_perm=BANDS * ROWS, seed=1)
    lsh = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    filled = [(index, signature) for index, signature in enumerate(signatures) if not signature.is_empty()]
    with lsh.insertion_session() as session:
        for index, signature in filled:
            session.insert(index, signature)
    n_pairs = 0
    for index, signature in filled:
        others = [other for other in lsh.query(signature) if other < index]
        if others:
            left = get_set(index)
            for right in map(get_set, others):
                n_common = len(left & right)
                n_pairs += n_common / (len(left) + len(right) - n_common) >= THRESHOLD
    return n_pairs


def run_datatrove(texts: list[str]) -> int:
    """The four stages of its minhash_deduplication example, on local files; returns the number of texts removed."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import (
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    config = MinhashConfig(n_grams=5, num_buckets=BANDS, hashes_per_bucket=ROWS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        for part in range(N_WORKERS):
            lines = (json.dumps({"id": str(i), "text": texts[i]}) for i in range(part, len(texts), N_WORKERS))
            (folder / "in" / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        reader = JsonlReader(str(folder / "in"))
        path = {stage: str(folder / stage) for stage in ("signatures", "buckets", "clusters", "out", "removed")}
        removed = JsonlWriter(path["removed"], compression=None)
        steps = [
            ([reader, MinhashDedupSignature(path["signatures"], config=config)], N_WORKERS),
            ([MinhashDedupBuckets(path["signatures"], path["buckets"], config=config)], BANDS),
            ([MinhashDedupCluster(path["buckets"], path["clusters"], config=config)], 1),
            (
                [
                    reader,
                    MinhashDedupFilter(path["clusters"], exclusion_writer=removed),
                    JsonlWriter(path["out"], compression=None),
                ],
                N_WORKERS,
            ),
        ]
        for index, (pipeline, tasks) in enumerate(steps):
            LocalPipelineExecutor(
                pipeline, tasks=tasks, workers=min(tasks, N_WORKERS), logging_dir=str(folder / "logs" / str(index))
            ).run()
        return sum(len(file.read_bytes().splitlines()) for file in (folder / "removed").rglob("*.jsonl"))


RUNS = {
    "ours": run_ours,
    "ours, default for 0.5": run_ours_by_default,
    "datasketch": run_datasketch,
    "datasketch, lean": run_datasketch_lean,
    "datatrove": run_datatrove,
}


def measure(name: str, texts: Path, python: str = sys.executable) -> dict[str, float]:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [python, __file__, name, str(texts)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def peak_mb() -> float:
    """Peak of this process or, where it is larger, of its largest child."""
    # Not ru_maxrss of the process itself: it starts from the peak of the process that started this one.
    own = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0])
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1e3


def has_datatrove(python: str) -> bool:
    # datatrove 0.10 hands str to xxhash, which versions from 4 on refuse.
    probe = "import datatrove.pipeline.dedup, datatrove.pipeline.readers, orjson, spacy, xxhash; xxhash.xxh64('text')"
    return subprocess.run([python, "-c", probe], capture_output=True).returncode == 0


def test_dedup_speed(tmp_path: Path) -> None:
    import polars as pl
    import pytest

    if not DATA.exists():
        pytest.skip("the news documents are not beside this checkout")
    texts = pl.read_parquet(DATA, columns=["text"]).sample(fraction=1, shuffle=True, seed=17)["text"].to_list()
    files = {}
    for size in SIZES:
        files[size] = tmp_path / f"{size}.jsonl"
        files[size].write_text("".join(json.dumps(text) + "\n" for text in texts[:size]), encoding="utf-8")
    print(f"\n{'near-duplicates':<24}{'documents':>10}{'seconds':>9}{'peak MB':>9}{'added MB':>10}{'found':>8}")

    def row(name: str, size: int, python: str = sys.executable, repeats: int = REPEATS) -> dict[str, float]:
        runs = sorted((measure(name, files[size], python) for _ in range(repeats)), key=lambda run: run["seconds"])
        median = runs[repeats // 2]
        print(
            f"{name:<24}{size:>10,}{median['seconds']:>9.2f}{median['peak_mb']:>9.0f}"
            f"{median['peak_mb'] - median['before_mb']:>10.0f}{median['found']:>8.0f}",
            flush=True,
        )
        return median

    ours = [row("ours", size) for size in SIZES]
    row("ours, default for 0.5", SIZES[-1])
    datasketch = [row("datasketch", size, repeats=1) for size in SIZES]
    lean = row("datasketch, lean", SIZES[-1], repeats=1)
    for name, other in (("datasketch", datasketch[-1]), ("datasketch, lean", lean)):
        print(
            f"against {name}: {other['seconds'] / ours[-1]['seconds']:.1f} times as fast, "
            f"{ours[-1]['peak_mb'] / other['peak_mb']:.2f} of its peak memory"
        )
    for small, large, first, second in zip(SIZES, SIZES[1:], ours, ours[1:], strict=False):
        more = (large - small) / 1000
        print(
            f"ours from {small:,} to {large:,}: {(second['seconds'] - first['seconds']) / more * 1000:.0f} ms and "
            f"{(second['peak_mb'] - first['peak_mb']) / more:.1f} MB per 1,000 documents"
        )
    assert ours[-1]["found"] >= 0.99 * datasketch[-1]["found"]
    python = os.environ.get("EV_DATATROVE_PYTHON", sys.executable)
    if has_datatrove(python):
        datatrove = row("datatrove", SIZES[-1], python, repeats=1)
        print(f"against datatrove: {datatrove['seconds'] / ours[-1]['seconds']:.1f} times as fast")
    else:
        print("datatrove               skipped: pip install datatrove orjson regex spacy tokenizers 'xxhash<4'")


if __name__ == "__main__":
    which, source = sys.argv[1:]
    with Path(source).open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    modules = {"ours": "ev_platform.corpus.duplicates", "datasketch": "datasketch"}
    importlib.import_module(modules.get(which.split(",")[0], "datatrove.pipeline.dedup"))
    before = peak_mb()
    started = time.perf_counter()
    n_found = RUNS[which](documents)
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "before_mb": before, "peak_mb": peak_mb(), "found": n_found}))
