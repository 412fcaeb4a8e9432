"""The contact sheet of a recording: one row per episode and camera, frames from left to right.

Below each frame is what a model sees of it: cropped, and at the proposed image size.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from lewm_models.preprocessing import to_model_frames
from lewm_models.recordings.recording import Column, Recording, RecordingError
from lewm_models.recordings.summary import DEFAULT_IMAGE_SIZE

MAX_ROWS, FRAMES_PER_ROW = 6, 8
FRAME_HEIGHT, MAX_FRAME_WIDTH = 120, 240
GAP, TITLE_HEIGHT, LABEL_HEIGHT, FRAME_LABEL_HEIGHT = 8, 34, 20, 15
TITLE_SIZE, LABEL_SIZE, FRAME_LABEL_SIZE = 16, 13, 11

PAPER, INK, GREY, DAMAGED = (250, 250, 251), (32, 36, 44), (120, 126, 136), (214, 60, 60)


def draw_contact_sheet(
    recording: Recording, cameras: tuple[Column, ...], title: str, output: Path
) -> list[str]:
    """Write a PNG. Episodes and frames are taken evenly over the recording.

    A frame that cannot be read is drawn as a red field.

    Returns:
        Why frames could not be read, one sentence each.

    Raises:
        OSError: the file cannot be written.
    """
    steps = recording.contents.episode_steps
    filled = [episode for episode, count in enumerate(steps) if count]
    rows_per_camera = max(1, MAX_ROWS // max(1, len(cameras)))
    rows = [(episode, camera) for episode in _evenly(filled, rows_per_camera) for camera in cameras]
    width, height = _frame_size(cameras)
    view_side = min(width, FRAME_HEIGHT)
    row_height = LABEL_HEIGHT + height + GAP + view_side + FRAME_LABEL_HEIGHT + GAP
    size = (
        GAP + FRAMES_PER_ROW * (width + GAP),
        TITLE_HEIGHT + max(1, len(rows)) * row_height,
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), title, INK, ImageFont.load_default(TITLE_SIZE))
    damages: list[str] = []
    for row, (episode, camera) in enumerate(rows):
        top = TITLE_HEIGHT + row * row_height
        label = f"episode {episode}, {steps[episode]} steps"
        if len(recording.contents.cameras) > 1:
            label += f", {camera.name}"
        label += f"; below: what a model sees at {DEFAULT_IMAGE_SIZE} pixels"
        if camera.shape[0] != camera.shape[1]:
            label += ", crop center"
        draw.text((GAP, top), label, INK, ImageFont.load_default(LABEL_SIZE))
        for column, step in enumerate(_evenly(list(range(steps[episode])), FRAMES_PER_ROW)):
            left = GAP + column * (width + GAP)
            box = (left, top + LABEL_HEIGHT)
            try:
                frame = recording.read_frames(camera.name, episode, first=step, count=1)[0]
            except RecordingError as error:
                damages.append(str(error))
                draw.rectangle((*box, left + width - 1, box[1] + height - 1), fill=DAMAGED)
            else:
                sheet.paste(_thumbnail(frame, width, height), box)
                view = _thumbnail(_model_frame(frame), view_side, view_side)
                sheet.paste(view, (left, box[1] + height + GAP))
            draw.text(
                (left, box[1] + height + GAP + view_side + 1),
                f"step {step}",
                GREY,
                ImageFont.load_default(FRAME_LABEL_SIZE),
            )
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, format="PNG")
    return damages


def _evenly(items: list[int], count: int) -> list[int]:
    """At most this many of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return items
    return [items[place] for place in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _frame_size(cameras: tuple[Column, ...]) -> tuple[int, int]:
    """Width and height of all frames on the sheet: the widest camera fits."""
    ratio = max((camera.shape[1] / camera.shape[0] for camera in cameras), default=1.0)
    width = round(FRAME_HEIGHT * ratio)
    if width <= MAX_FRAME_WIDTH:
        return width, FRAME_HEIGHT
    return MAX_FRAME_WIDTH, max(1, round(MAX_FRAME_WIDTH / ratio))


def _model_frame(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) as a model sees it without further options."""
    frames = torch.from_numpy(np.array(frame))[None]
    return to_model_frames(frames, DEFAULT_IMAGE_SIZE, "center")[0].numpy()


def _thumbnail(frame: np.ndarray, width: int, height: int) -> Image.Image:
    """The frame as large as fits into the size. Small frames are enlarged without smoothing."""
    image = Image.fromarray(frame)
    scale = min(width / image.width, height / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smoothing = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize(size, smoothing)
