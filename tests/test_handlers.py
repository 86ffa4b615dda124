import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.transforms import Compose, RandGaussianNoised, ToTensord
from scripts.handlers import (
    EMA,
    EMAUpdate,
    EpochSeed,
    FinalValidation,
    GradientClipping,
    TrainingLog,
    TrainingState,
    read_log,
    save_atomically,
)


class Parts:
    """A tiny regression with everything that a run saves, and a validator that reports given scores."""

    def __init__(self, folder, epochs=4, scores=(), workers=0, patience=None, resume=True, on_iteration=None, seed=5):
        torch.manual_seed(1)
        self.network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.3), torch.nn.Linear(4, 1))
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.05)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.9)
        self.ema = EMA(self.network, decay=0.9)
        data = [{"image": row, "label": row.sum(keepdims=True)} for row in np.eye(3, dtype=np.float32)]
        dataset = Dataset(data, Compose([ToTensord(["image", "label"]), RandGaussianNoised("image", prob=1.0)]))
        loader = DataLoader(dataset, batch_size=2, shuffle=True, num_workers=workers)
        scores = iter(scores)
        self.validator = Engine(lambda engine, batch: None)
        self.log = TrainingLog(
            path=f"{folder}/log.csv",
            validator=self.validator,
            key_metric="val_dice",
            class_metric="per_class",
            classes=["liver", "tumour"],
            optimizer=self.optimizer,
        )
        self.state = TrainingState(
            folder=str(folder),
            objects={"network": self.network, "ema": self.ema, "optimizer": self.optimizer, "schedule": self.schedule},
            deployed=self.ema.module,
            validator=self.validator,
            key_metric="val_dice",
            patience=patience,
            resume=resume,
        )
        self.trainer = SupervisedTrainer(
            device=torch.device("cpu"),
            max_epochs=epochs,
            train_data_loader=loader,
            network=self.network,
            optimizer=self.optimizer,
            loss_function=torch.nn.MSELoss(),
            train_handlers=[
                EpochSeed(seed=seed, dataset=dataset),
                GradientClipping(max_norm=1.0),
                EMAUpdate(ema=self.ema, model=self.network),
            ],
            decollate=False,
        )

        @self.trainer.on(Events.EPOCH_COMPLETED)
        def validate():
            self.schedule.step()
            score = next(scores, None)
            if score is not None:
                self.validator.state.metrics = {"val_dice": score, "per_class": torch.tensor([score, score / 2])}
                self.validator.fire_event(Events.COMPLETED)

        if on_iteration:
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED, on_iteration)
        self.log.attach(self.trainer)
        self.state.attach(self.trainer)

    def run(self):
        self.trainer.run()
        return self

    def everything(self):
        return [*self.network.parameters(), *self.ema.module.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.everything(), b.everything(), strict=True))


class Killed(RuntimeError):
    pass


def killer(epoch, iteration):
    def kill(engine):
        if engine.state.epoch == epoch and engine.state.iteration == iteration:
            raise Killed

    return kill


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("epoch", "iteration"), [(1, 1), (2, 3), (3, 6)])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, epoch, iteration, workers):
    whole = Parts(tmp_path / "whole", workers=workers).run()
    with pytest.raises(Killed):
        Parts(tmp_path / "cut", workers=workers, on_iteration=killer(epoch, iteration)).run()
    torch.rand(17), np.random.rand(3), random.random()  # another process has other generators
    resumed = Parts(tmp_path / "cut", workers=workers).run()
    assert same(whole, resumed)
    assert resumed.schedule.get_last_lr() == whole.schedule.get_last_lr()
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(tmp_path / "cut" / "log.csv")]
    assert rows == [
        {k: v for k, v in row.items() if k != "seconds"} for row in read_log(tmp_path / "whole" / "log.csv")
    ]


def test_another_seed_gives_another_run(tmp_path):
    a, b, c = Parts(tmp_path / "a"), Parts(tmp_path / "b", seed=6), Parts(tmp_path / "c")
    assert same(a.run(), c.run())
    assert not same(a, b.run())


def test_finished_run_is_not_trained_again(tmp_path):
    first = Parts(tmp_path).run()
    assert same(first, Parts(tmp_path).run())
    assert len(read_log(tmp_path / "log.csv")) == 4


def test_best_weights_and_scores(tmp_path):
    parts = Parts(tmp_path, scores=[0.2, 0.6, 0.4, 0.5])
    seen = []
    parts.trainer.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: seen.append({k: v.clone() for k, v in parts.ema.module.state_dict().items()})
    )
    parts.run()
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(best[k], seen[1][k]) for k in best)
    assert [row["val_dice"] for row in read_log(tmp_path / "log.csv")] == ["0.20000", "0.60000", "0.40000", "0.50000"]
    assert read_log(tmp_path / "log.csv")[1]["val_dice_tumour"] == "0.30000"


def test_best_score_survives_the_resume(tmp_path):
    with pytest.raises(Killed):
        Parts(tmp_path, scores=[0.9, 0.1], on_iteration=killer(3, 5)).run()
    before = torch.load(tmp_path / "model.pt", weights_only=True)
    Parts(tmp_path, scores=[0.5, 0.6]).run()
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_stops_when_nothing_improves(tmp_path):
    Parts(tmp_path, epochs=9, scores=[0.5, 0.6, 0.4, 0.3, 0.7, 0.8], patience=2).run()
    assert len(read_log(tmp_path / "log.csv")) == 4


def test_stopping_waits_for_a_validation_and_lasts(tmp_path):
    first = Parts(tmp_path, epochs=9, scores=[0.5, None, None, 0.4, 0.9], patience=2).run()
    assert len(read_log(tmp_path / "log.csv")) == 4
    assert same(first, Parts(tmp_path, epochs=9, scores=[0.99], patience=2).run())
    assert len(read_log(tmp_path / "log.csv")) == 4


@pytest.mark.parametrize(("epochs", "runs"), [(3, [3]), (4, [])])
def test_final_epoch_is_validated_once(epochs, runs):
    class Validator:
        def run(self, epoch):
            done.append(epoch)

    done = []
    trainer = Engine(lambda engine, batch: None)
    FinalValidation(validator=Validator(), interval=2).attach(trainer)
    trainer.run([0], max_epochs=epochs)
    assert done == runs


def test_saved_files_follow_the_umask(tmp_path):
    save_atomically({"a": 1}, tmp_path / "x.pt")
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.pt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain", "x.pt"]


def test_fresh_start_over_an_old_run_is_refused(tmp_path):
    Parts(tmp_path, epochs=1).run()
    with pytest.raises(FileExistsError, match="holds an earlier run"):
        Parts(tmp_path, resume=False).run()


def test_state_of_another_network_is_refused(tmp_path):
    Parts(tmp_path, epochs=1).run()
    other = Parts(tmp_path)
    state = torch.load(other.state.path, weights_only=True)
    state["objects"]["network"]["0.weight"] = torch.zeros(7, 3)
    save_atomically(state, other.state.path)
    with pytest.raises(ValueError, match="the saved network does not fit"):
        other.run()


def test_loss_that_is_not_finite_stops_the_run(tmp_path):
    parts = Parts(tmp_path)
    parts.trainer.loss_function = lambda pred, label: pred.mean() * float("nan")
    with pytest.raises(RuntimeError, match="The training loss is nan in epoch 1"):
        parts.run()


def test_failed_save_leaves_the_old_file(tmp_path):
    save_atomically({"a": 1}, tmp_path / "x.pt")
    with pytest.raises(Exception, match="pickle"):
        save_atomically({"a": lambda: 0}, tmp_path / "x.pt")
    assert torch.load(tmp_path / "x.pt", weights_only=True) == {"a": 1}


def test_clipping_bounds_the_gradient(tmp_path):
    parts = Parts(tmp_path, epochs=1)
    parts.trainer.loss_function = lambda pred, label: 1e4 * torch.nn.functional.mse_loss(pred, label)
    norms = []

    def note(engine):
        norms.append(torch.cat([p.grad.flatten() for p in parts.network.parameters()]).norm().item())

    parts.trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    parts.run()
    assert norms
    assert max(norms) <= 1.0 + 1e-4


@pytest.mark.parametrize("value", [0, -1])
def test_clipping_needs_a_positive_norm(value):
    with pytest.raises(ValueError, match=f"max_norm is {value}"):
        GradientClipping(max_norm=value)


def test_average_follows_the_stated_rule():
    network = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(network, decay=0.5)
    expected = None
    for n, value in enumerate([1.0, 3.0, -2.0, 5.0]):
        network.weight.data.fill_(value)
        ema.update_parameters(network)
        weight = min(0.5, (1 + n) / (10 + n))
        expected = value if expected is None else weight * expected + (1 - weight) * value
        assert ema.module.weight.item() == pytest.approx(expected)


def test_average_does_not_hold_the_live_network():
    ema = EMA(torch.nn.Linear(2, 2))
    assert set(ema.state_dict()) == {"n_averaged", "module.weight", "module.bias"}


def test_average_needs_a_decay_below_one():
    with pytest.raises(ValueError, match="decay is 1"):
        EMA(torch.nn.Linear(1, 1), decay=1)
