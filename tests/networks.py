"""Networks as users write them: sixteen encoders and twelve decoders of images of 8 x 8."""

import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from tarspyro.nn import MLP, ConvDecoder, ConvEncoder

SHAPE = (1, 8, 8)
LATENT = 3


# --- encoders


class Viewed(nn.Module):
    """Flattens its input for itself, as the encoder of Pyro's tutorial does."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 16)
        self.softplus = nn.Softplus()

    def forward(self, x):
        return self.softplus(self.fc1(x.view(x.size(0), -1)))


class Rows(nn.Module):
    """A linear layer for each row of the image, then a recurrent network over the rows."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 12)
        self.gru = nn.GRU(12, 16, batch_first=True)

    def forward(self, x):
        _, last = self.gru(self.embed(x.squeeze(1)))
        return last[0]


class Attention(nn.Module):
    """A linear layer for each row of the image, then a transformer."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.transform = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x):
        return self.transform(self.embed(x.squeeze(1))).mean(1)


class DeepSet(nn.Module):
    """A sum over the pixels, each with its own features."""

    def __init__(self):
        super().__init__()
        self.each = nn.Sequential(nn.Linear(1, 16), nn.ReLU())
        self.all = nn.Linear(16, 16)

    def forward(self, x):
        return torch.relu(self.all(self.each(x.flatten(1).unsqueeze(-1)).mean(1)))


class OutOfOrder(nn.Module):
    """Registers its last layer first."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4 * 16, 16)
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)

    def forward(self, x):
        return torch.relu(self.fc(torch.relu(self.conv(x)).flatten(1)))


class Tokens(nn.Module):
    """Embeds dark and bright pixels."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(2, 4)
        self.fc = nn.Linear(4 * 64, 16)

    def forward(self, x):
        return torch.relu(self.fc(self.embedding((x.flatten(1) > 0.5).long()).flatten(1)))


class Residual(nn.Module):
    """Adds its input to a layer's output, and normalizes first."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(SHAPE)
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.fc = nn.Linear(64, 16)

    def forward(self, x):
        h = x + self.conv(self.norm(x))
        return torch.relu(self.fc(h.flatten(1)))


ENCODERS = {
    "MLP": lambda: MLP(SHAPE, [16]),
    "Flatten": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU()),
    "view": Viewed,
    "ConvEncoder": lambda: ConvEncoder(SHAPE, [4, 8]),
    "Conv2d": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    ),
    "Linear before GRU": Rows,
    "Linear before transformer": Attention,
    "deep set": DeepSet,
    "convolution after its fc": OutOfOrder,
    "LazyConv2d": lambda: nn.Sequential(
        nn.LazyConv2d(4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(16), nn.ReLU()
    ),
    "Embedding": Tokens,
    "LayerNorm and residual": Residual,
    "BatchNorm1d": lambda: nn.Sequential(
        nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 16), nn.Tanh()
    ),
    "BatchNorm2d": lambda: nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Flatten()
    ),
    "weight norm": lambda: nn.Sequential(
        nn.Flatten(), weight_norm(nn.Linear(64, 16)), nn.ReLU()
    ),
    "Unflatten": lambda: nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (4, 16)), nn.Conv1d(4, 4, 3), nn.ReLU(), nn.Flatten()
    ),
}


# --- decoders


class Topics(nn.Module):
    """A weight matrix without a layer around it."""

    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.randn(LATENT, 16) / 2)

    def forward(self, theta):
        return theta @ self.beta


class Repeated(nn.Module):
    """A recurrent network over a code that is repeated for each row."""

    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(LATENT, 8, batch_first=True)

    def forward(self, z):
        h, _ = self.gru(z.unsqueeze(1).repeat(1, 8, 1))
        return h.flatten(1)


class Skip(nn.Module):
    """Lays the code beside the features of every layer."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(LATENT, 16)
        self.second = nn.Linear(16 + LATENT, 16)

    def forward(self, z):
        h = torch.relu(self.first(z))
        return torch.relu(self.second(torch.cat([h, z], 1)))


DECODERS = {
    "MLP": lambda: MLP(LATENT, [16]),
    "Linear": lambda: nn.Sequential(nn.Linear(LATENT, 16), nn.ReLU()),
    "Unflatten": lambda: nn.Sequential(
        nn.Unflatten(1, (LATENT, 1, 1)), nn.ConvTranspose2d(LATENT, 4, 4), nn.ReLU()
    ),
    "LayerNorm": lambda: nn.Sequential(nn.LayerNorm(LATENT), nn.Linear(LATENT, 16), nn.ReLU()),
    "Identity": nn.Identity,
    "theta @ beta": Topics,
    "weight norm": lambda: nn.Sequential(weight_norm(nn.Linear(LATENT, 16)), nn.ReLU()),
    "GRU over a repeated code": Repeated,
    "ConvDecoder": lambda: ConvDecoder(LATENT, SHAPE, [8, 4]),
    "LazyLinear": lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU()),
    "skip connections": Skip,
    "BatchNorm1d": lambda: nn.Sequential(
        nn.BatchNorm1d(LATENT), nn.Linear(LATENT, 16), nn.ReLU()
    ),
}
