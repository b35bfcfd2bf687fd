"""Step 1: all digits in one place, plain PyTorch. Run it: ``python examples/tutorial/centralised.py``."""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

EPOCHS = 10


def model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def main() -> None:
    torch.manual_seed(0)
    raw = load_digits()
    x = torch.tensor(raw.data / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(raw.target)
    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=360, random_state=0)
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(x_train)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x_train[batch]), y_train[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        accuracy = (network(x_test).argmax(1) == y_test).float().mean().item()
    print(f"accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
