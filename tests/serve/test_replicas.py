import socket
import subprocess
import sys

import pytest
from tests.serve.servers import tiny_codec

from xycodec.checkpoints.save import save_codec

PROGRAM = """
import io, logging, os, sys
from concurrent.futures import ThreadPoolExecutor
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
import numpy as np, ray, soundfile as sf
from ray import serve
from xycodec import load_codec
from xycodec.serve.client import Client, ServerError
from xycodec.serve.cluster import deployment
from xycodec.serve.settings import Settings

folder, port = sys.argv[1], int(sys.argv[2])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
serve.start(http_options={"host": "127.0.0.1", "port": port})
serve.run(deployment(Settings(models=(folder,), workers=1, threads=1), replicas=2, cpus=0.5), route_prefix="/")
codec = load_codec(folder, device="cpu")
clips = []
for i in range(12):
    file = io.BytesIO()
    sf.write(file, np.random.default_rng(i).uniform(-0.3, 0.3, 5000 + 3000 * i), 16000, format="WAV")
    clips.append(file.getvalue())
with Client(f"http://127.0.0.1:{port}") as client:
    with ThreadPoolExecutor(6) as pool:
        files = list(pool.map(client.encode, clips))
    assert files == [codec.encode_file(io.BytesIO(clip)) for clip in clips]
    codes = list(client.stream_encode([np.zeros(16000, np.int16)]))
    assert sum(part.shape[1] for part in codes) == 13
    try:
        client.encode(b"no audio")
    except ServerError as error:
        assert error.status == 415
    else:
        raise AssertionError
replicas = serve.status().applications["default"].deployments["xycodec"].replica_states
print("replicas", {str(getattr(state, "value", state)): count for state, count in replicas.items()})
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.long
@pytest.mark.timeout(280)
def test_two_replicas_give_what_the_library_gives(tmp_path):
    folder = save_codec(tiny_codec(), tmp_path / "tiny")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, str(folder), str(port)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=270)
    assert ran.returncode == 0, ran.stderr
    assert "replicas {'RUNNING': 2}" in ran.stdout


def test_without_ray_it_says_what_to_install(monkeypatch):
    from xycodec.errors import XycodecError
    from xycodec.serve.cluster import deployment
    from xycodec.serve.settings import Settings

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(XycodecError, match=r"xycodec\[cluster\]"):
        deployment(Settings())
