"""MTCNN: three small networks in a cascade find faces and five landmarks (Zhang et al., arXiv 1604.02878).

Every box here is N x 4 (left, top, right, bottom) in pixel edges: 0 is the image's left edge, width its right one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.faces.face import Bytes3, Face, largest_first

#: The paper's cascade. A face is at least MIN_FACE px, and at least one part in MIN_SHARE of the longer side: the
#: first network's cost grows with the square of that.
THRESHOLDS: Final = (0.6, 0.7, 0.7)
PYRAMID: Final = 0.709
MIN_FACE: Final = 20
MIN_SHARE: Final = 24
#: Pixels; a larger image is reduced before it is searched.
MAX_SIDE: Final = 1280
#: The last network sees 48 x 48 px, whatever the size of the image.
_CELL, _STRIDE, _R_SIDE, _O_SIDE = 12, 2, 24, 48


class PNet(nn.Module):
    """Proposes: a fully convolutional look at every 12 x 12 window, every 2 px."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 10, 3), nn.PReLU(10)
        self.conv2, self.prelu2 = nn.Conv2d(10, 16, 3), nn.PReLU(16)
        self.conv3, self.prelu3 = nn.Conv2d(16, 32, 3), nn.PReLU(32)
        self.conv4_1, self.conv4_2 = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # N 3 H W => face or not N H' W', edges N 4 H' W'
        x = functional.max_pool2d(self.prelu1(self.conv1(x)), 2, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_1(x).softmax(1)[:, 1], self.conv4_2(x)


class RNet(nn.Module):
    """Refines: 24 x 24 px."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 28, 3), nn.PReLU(28)
        self.conv2, self.prelu2 = nn.Conv2d(28, 48, 3), nn.PReLU(48)
        self.conv3, self.prelu3 = nn.Conv2d(48, 64, 2), nn.PReLU(64)
        self.dense4, self.prelu4 = nn.Linear(576, 128), nn.PReLU(128)
        self.dense5_1, self.dense5_2 = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # N 3 24 24 => N, N 4
        x = functional.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = functional.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = self.prelu3(self.conv3(x))
        x = self.prelu4(self.dense4(_columns_first(x)))
        return self.dense5_1(x).softmax(1)[:, 1], self.dense5_2(x)


class ONet(nn.Module):
    """Puts out: 48 x 48 px, with landmarks."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.prelu1 = nn.Conv2d(3, 32, 3), nn.PReLU(32)
        self.conv2, self.prelu2 = nn.Conv2d(32, 64, 3), nn.PReLU(64)
        self.conv3, self.prelu3 = nn.Conv2d(64, 64, 3), nn.PReLU(64)
        self.conv4, self.prelu4 = nn.Conv2d(64, 128, 2), nn.PReLU(128)
        self.dense5, self.prelu5 = nn.Linear(1152, 256), nn.PReLU(256)
        self.dense6_1, self.dense6_2, self.dense6_3 = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # N 3 48 48 => N, N 4, N 10
        x = functional.max_pool2d(self.prelu1(self.conv1(x)), 3, 2, ceil_mode=True)
        x = functional.max_pool2d(self.prelu2(self.conv2(x)), 3, 2, ceil_mode=True)
        x = functional.max_pool2d(self.prelu3(self.conv3(x)), 2, 2, ceil_mode=True)
        x = self.prelu4(self.conv4(x))
        x = self.prelu5(self.dense5(_columns_first(x)))
        return self.dense6_1(x).softmax(1)[:, 1], self.dense6_2(x), self.dense6_3(x)


def _columns_first(x: Tensor) -> Tensor:  # N C H W => N (W H C): the published weights were trained in Matlab's order
    return x.permute(0, 3, 2, 1).flatten(1)


class MTCNN(nn.Module):
    """The cascade."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = PNet(), RNet(), ONet()

    @torch.inference_mode()
    def detect(self, image: Bytes3) -> list[Face]:
        """All faces of an H x W x 3 uint8 RGB image, largest first."""
        from PIL import Image

        height, width = image.shape[:2]
        block = max(1, math.ceil(max(height, width) / MAX_SIDE))
        pixels = np.asarray(Image.fromarray(image).reduce(block)) if block > 1 else image
        x = (torch.tensor(pixels).permute(2, 0, 1)[None].float() - 127.5) / 128
        boxes = self._propose(x)
        boxes, _, _ = self._judge(x, boxes, _R_SIDE, THRESHOLDS[1])
        boxes, scores, points = self._judge(x, boxes, _O_SIDE, THRESHOLDS[2])
        # Pixel edges of the reduced image to pixel middles of the image itself.
        boxes, points = boxes * block - 0.5, points * block - 0.5
        return largest_first(
            [
                Face((b[0], b[1], b[2], b[3]), np.array(p, np.float64), s)
                for b, s, p in zip(boxes.tolist(), scores.tolist(), points.tolist(), strict=True)
            ]
        )

    def _propose(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        smallest = max(MIN_FACE, max(height, width) / MIN_SHARE)
        found = [torch.zeros(0, 5)]
        scale = _CELL / smallest
        while min(height, width) * scale >= _CELL:
            size = (math.ceil(height * scale), math.ceil(width * scale))
            score, edges = self.pnet(functional.interpolate(x, size, mode="area"))
            row, column = (score[0] >= THRESHOLDS[0]).nonzero(as_tuple=True)
            corner = torch.stack([column, row], 1) * float(_STRIDE)
            step = torch.tensor([width / size[1], height / size[0]])
            boxes = torch.cat([corner * step, (corner + _CELL) * step], 1)
            boxes = torch.cat([_moved(boxes, edges[0, :, row, column].T), score[0, row, column, None]], 1)
            found.append(boxes[_suppress(boxes[:, :4], boxes[:, 4], 0.5)])
            scale *= PYRAMID
        boxes = torch.cat(found)
        return boxes[_suppress(boxes[:, :4], boxes[:, 4], 0.7), :4]

    def _judge(self, x: Tensor, boxes: Tensor, side: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
        """What the second (24 px) or third (48 px) network leaves of the boxes: boxes N 4, scores N, points N 5 2."""
        boxes = _square(boxes)
        boxes = boxes[boxes[:, 2] - boxes[:, 0] >= 1]
        if len(boxes) == 0:
            return torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 5, 2)
        patches = torch.cat([_patch(x, box, side) for box in boxes])
        if side == _R_SIDE:
            score, edges = self.rnet(patches)
            points = torch.zeros(len(boxes), 10)
        else:
            score, edges, points = self.onet(patches)
        sure = score >= threshold
        boxes, score, edges, points = boxes[sure], score[sure], edges[sure], points[sure]
        corner, extent = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
        points = corner + points.view(-1, 2, 5).transpose(1, 2) * extent  # N 5 2
        boxes = _moved(boxes, edges)
        keep = _suppress(boxes, score, 0.7, by_smaller=side == _O_SIDE)
        return boxes[keep], score[keep], points[keep]


def load_mtcnn(path: Path) -> MTCNN:
    """The cascade with its weights, by facenet-pytorch's names: ``pnet.*``, ``rnet.*``, ``onet.*``.

    Raises:
        RuntimeError, safetensors.SafetensorError: the file does not hold these tensors.
    """
    from safetensors.torch import load_file

    model = MTCNN()
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(False)


def _patch(x: Tensor, box: Tensor, side: int) -> Tensor:  # 1 3 side side, averaged; the mean grey outside the image
    height, width = x.shape[2:]
    left, top, right, bottom = (int(v) for v in box.round().tolist())
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    inside = x[:, :, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    margins = (max(-left, 0), max(right - max(width, left), 0), max(-top, 0), max(bottom - max(height, top), 0))
    return functional.interpolate(functional.pad(inside, margins), (side, side), mode="area")


def _moved(boxes: Tensor, edges: Tensor) -> Tensor:
    """Each edge moved by a network's share of the box's width or height."""
    extent = boxes[:, 2:4] - boxes[:, :2]
    return boxes[:, :4] + edges * extent.repeat(1, 2)


def _square(boxes: Tensor) -> Tensor:
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([middle - half, middle + half], 1)


def _suppress(boxes: Tensor, scores: Tensor, overlap: float, *, by_smaller: bool = False) -> Tensor:
    """Indices of the boxes that no surer one overlaps by more, of their union or of the smaller one; surest first."""
    b, score = boxes.double().numpy(), scores.double().numpy()
    area = np.maximum(b[:, 2] - b[:, 0], 0) * np.maximum(b[:, 3] - b[:, 1], 0)
    order = np.argsort(-score, kind="stable")
    keep: list[int] = []
    while len(order):
        first, rest = order[0], order[1:]
        keep.append(int(first))
        low, high = np.maximum(b[first, :2], b[rest, :2]), np.minimum(b[first, 2:], b[rest, 2:])
        shared = np.maximum(high - low, 0).prod(1)
        whole = np.minimum(area[first], area[rest]) if by_smaller else area[first] + area[rest] - shared
        order = rest[shared <= overlap * whole]
    return torch.tensor(keep, dtype=torch.long)
