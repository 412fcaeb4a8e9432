"""Records until it is killed, and prints how many steps are written. Run by test_recorder.py."""

import sys

import numpy as np

from lewm_client import Recorder


def main(folder: str, episode_steps: int) -> None:
    recorder = Recorder(folder, rate_hz=10)
    step = 0
    while True:
        frame = np.full((120, 160, 3), step % 251, np.uint8)
        recorder.add(frame, [step, -step], [step], time_s=step / 10)
        step += 1
        print(step, flush=True)
        if step % episode_steps == 0:
            recorder.end_episode()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
