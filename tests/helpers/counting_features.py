"""A feature extractor that counts the images it is given."""

import torch

COUNTED = {"images": 0}


class Counter(torch.nn.Module):
    """An extractor that counts the images it is given."""

    def forward(self, images):
        COUNTED["images"] += len(images)
        return images.float().flatten(1)[:, :4]


def make_counter(device):
    return Counter().to(device)
