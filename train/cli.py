"""`python -m train fit | validate`: Lightning's command line with the traps taken out.

What differs from a plain `LightningCLI`, and why:

- The run folder is `trainer.default_root_dir`; its last part is the run's name. The configuration is saved there whole,
  by a callback that runs after the folder has been locked, and never collides with an earlier one.
- `--resume auto | never | PATH` replaces `--ckpt_path`, with which Lightning would let a checkpoint's hyperparameters
  overrule the given ones in silence. What differs from the stored configuration is shown; if it determines the
  weights, the run is refused (`--allow_changes true` overrides).
- No default checkpointing and no default logger: both are callbacks named in the configuration.
- The bar is `train.progress.TrainingBar`: Lightning's counts batches of an epoch that has no end.
- A trial of a W&B sweep has a run folder of its own below the given one.
- `trainer.precision: null` means bf16 where the hardware computes in it, else float32.

Callbacks are named by the configuration; a callback that can find a checkpoint to resume from says so by a method
`newest_checkpoint(run_folder)`.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning.callbacks import Checkpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from babelscope.yaml_text import anchored, check_arguments, guard_parsers, read_config
from train.config.compatibility import check_checkpoint, check_data, check_trainer
from train.config.options import check_options, check_seed
from train.config.run_config import CONFIG_FILE, find_differences, save_config
from train.data.batches import micro_batch_size
from train.data.tokenizer import is_taken, load_tokenizer
from train.datamodule import MultilingualDataModule
from train.module import LanguageModelingModule
from train.progress import TrainingBar

log = logging.getLogger(__name__)

TRAINER_DEFAULTS: dict[str, Any] = {
    "default_root_dir": "runs/unnamed",
    "max_epochs": -1,
    "logger": False,
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 10,
}


class SaveRunConfig(SaveConfigCallback):
    """Writes the effective configuration to `<run folder>/config.yaml` once the folder is locked (`setup` of callbacks)
    and the checkpoint has been accepted, before anything else is written."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Not yet."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            save_config(Path(trainer.default_root_dir), dump_config(self.parser, self.config))


def dump_config(parser: LightningArgumentParser, config: Namespace) -> str:
    """The effective configuration as YAML that `--config` takes; options that belong to one start only are left out."""
    kept = config.clone()
    for key in ("config", "resume", "allow_changes", "restarts"):
        kept.pop(key, None)
    text: str = parser.dump(kept, skip_none=False, skip_validation=True)
    content = yaml.safe_load(text)
    moved = anchored(content, Path.cwd())  # `./x` of the command line would become one from the run folder
    return text if moved == content else yaml.safe_dump(moved, sort_keys=False, allow_unicode=True)


class TrainingCLI(LightningCLI):
    """The command line of `train`; parses, checks everything that can be checked, then trains or validates."""

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            LanguageModelingModule,
            MultilingualDataModule,
            save_config_callback=SaveRunConfig,
            trainer_defaults=dict(TRAINER_DEFAULTS),
            seed_everything_default=1,
            parser_kwargs=parser_options(),
            args=args,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        for name, subparser in self._subcommand_parsers.items():
            subparser.prog = f"python -m train {name}"

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        skipped = {"model", "datamodule", "ckpt_path", "weights_only"}
        return {
            "fit": skipped | {"train_dataloaders", "val_dataloaders"},
            "validate": skipped | {"dataloaders", "verbose"},
        }

    def parse_arguments(self, parser: LightningArgumentParser, args: list[str] | None) -> None:  # type: ignore[override]
        """As Lightning's, without its warning that `args` beside `sys.argv` may be a mistake."""
        check_arguments(args or ())
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        check_seed("seed_everything", self.config[self.subcommand].seed_everything)
        super()._set_seed()

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        add_run_arguments(parser)

    def before_instantiate_classes(self) -> None:
        run = self.config[self.subcommand]
        if run.restarts is not None:  # on the command line `train.__main__` takes it out
            raise ValueError(f"restarts: {run.restarts}: say --restarts {run.restarts} on the command line of fit")
        if isinstance(run.trainer.callbacks, Namespace):  # one, given without a list
            run.trainer.callbacks = [run.trainer.callbacks]
        run.trainer.default_root_dir = trial_folder(run.trainer.default_root_dir)
        if run.trainer.precision is None:
            run.trainer.precision = default_precision(run.trainer.accelerator)
        if not run.model.vocab_size:
            run.model.vocab_size = token_ids(run.data)
        check_options(run)

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        options = self._get(self.config_init, "trainer")
        callbacks = options.get("callbacks") or []
        if options.get("enable_checkpointing") is None:
            kwargs["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
        if options.get("enable_progress_bar") is not False and not any(isinstance(c, ProgressBar) for c in callbacks):
            kwargs["callbacks"] = [*callbacks, TrainingBar()]
        trainer = super().instantiate_trainer(**kwargs)
        # Lightning appends the callback that saves the configuration; others read the file when a fit starts.
        trainer.callbacks.sort(key=lambda callback: not isinstance(callback, SaveRunConfig))  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        check_trainer(self.trainer)
        # Again: how many processes there are may be known to the launcher alone.
        micro_batch_size(self.datamodule.batch_size, self.trainer.world_size, self.trainer.accumulate_grad_batches)

    def fit(self, **arguments: Any) -> None:
        """Train from the start or from where the run stopped."""
        given = self.config["fit"]
        folder = Path(self.trainer.default_root_dir)
        parser = self._parser("fit")
        self.datamodule.changed = refuse_other_run(
            folder,
            yaml.safe_load(dump_config(parser, given)),
            yaml.safe_load(dump_config(parser, parser.get_defaults())),
            resume=given.resume,
            allow_changes=given.allow_changes,
        )
        checkpoint = find_checkpoint(self.trainer, given.resume, self.model, self.datamodule)
        if checkpoint is not None:
            log.info("resuming from %s", checkpoint)
        self.datamodule.allow_changes = given.allow_changes
        check_data(self.datamodule, self.model.model.config)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if hasattr(callback, "preflight"):
                languages, excluded = self.datamodule.languages, self.datamodule.exclude
                callback.preflight(languages=languages, excluded=excluded, model=self.model.model)
        self.trainer.fit(**arguments, ckpt_path=checkpoint, weights_only=True)
        if self.trainer.is_global_zero:
            lines = [f"run:      {folder}, step {self.trainer.global_step:,} of {self.trainer.max_steps:,}"]
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                lines += callback.closing_lines() if hasattr(callback, "closing_lines") else []
            sys.stdout.write("\n".join([*lines, f"next:     python -m analysis report {folder}"]) + "\n")

    def validate(self, **arguments: Any) -> None:
        """Bits per byte of the run's newest checkpoint, or of the weights that a run would start with."""
        checkpoint = find_checkpoint(self.trainer, self.config["validate"].resume, self.model)
        log.info("validating %s", checkpoint or "untrained weights: no checkpoint found")
        scores = self.trainer.validate(**arguments, ckpt_path=checkpoint, weights_only=True, verbose=False)
        if not scores:
            raise ValueError("data.sources have no text of the split valid; state it in the files, or set valid_share")
        for key, value in scores[0].items():
            sys.stdout.write(f"{key.removeprefix('val/'):<24}{value:8.4f}\n")


class ParsedRun(TrainingCLI):
    """A configuration, parsed and checked; nothing is made of it and no random state is touched."""

    @property
    def run(self) -> Namespace:
        """The options of the chosen subcommand."""
        return self.config[self.subcommand]

    def instantiate_classes(self) -> None:
        """Make nothing."""

    def after_instantiate_classes(self) -> None:
        """Nothing is there to be checked."""

    def _set_seed(self) -> None:
        """Leave the random state alone."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


def parser_options() -> dict[str, Any]:
    """Options of all parsers: errors are raised, so that the caller prints them as one line."""
    guard_parsers()
    quiet = {"exit_on_error": False}
    return {
        **quiet,
        "fit": {**quiet, "description": "Pretrain, or go on with a run."},
        "validate": {**quiet, "description": "Bits per byte of a run's newest checkpoint, per language."},
    }


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Options of one start of a run; they are not part of the run's configuration."""
    parser.add_argument(
        "--resume",
        type=str,
        default="auto",
        help="auto: go on from the newest checkpoint of the run folder that verifies, if there is one; never: refuse a "
        "folder that holds a run; or the path of a checkpoint",
    )
    parser.add_argument(
        "--allow_changes",
        type=bool,
        default=False,
        help="go on although options that determine the weights differ from those the run was started with",
    )
    parser.add_argument(
        "--restarts",
        type=int | None,
        default=None,
        help="of fit, on the command line: start again after a crash, so many times at most (see `train.supervisor`)",
    )


def trial_folder(folder: str) -> str:
    """`folder`, or where an agent of a W&B sweep started this process the trial's own folder in it."""
    trial = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    return str(Path(folder) / trial) if trial and Path(folder).name != trial else folder


def token_ids(data: Namespace) -> int:
    """Token ids of the text that a `data` section describes: the tokenizer's, once more for each cloned language.

    Raises:
        FileNotFoundError, ValueError: the tokenizer is neither there nor to be trained.
    """
    made = data.vocab_size and not is_taken(data.tokenizer)
    size: int = data.vocab_size if made else len(load_tokenizer(data.tokenizer))
    return size * (1 + len(data.clones or ()))


def default_precision(accelerator: Any) -> str:
    """`bf16-mixed` where the device multiplies bf16 matrices natively, else `32-true`."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.get_device_capability()[0] >= 8 else "32-true"
    if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        return "bf16-mixed" if _cpu_has_bf16() else "32-true"
    return "32-true"


def _cpu_has_bf16() -> bool:
    """Whether the processor has bf16 dot products (AVX-512 BF16, AMX); without them oneDNN's emulation is slow."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, lambda: False)()) for probe in probes)


def refuse_other_run(
    folder: Path, given: dict[str, Any], defaults: dict[str, Any], *, resume: str, allow_changes: bool
) -> bool:
    """Compare the run folder's configuration with the given one; whether options that determine the weights differ.

    Raises:
        ValueError: the folder holds a run and `resume` is never, or options that determine the weights differ.
    """
    stored = read_config(folder / CONFIG_FILE)
    if stored is None:
        return False
    if resume == "never":
        raise ValueError(
            f"{folder} holds a run already; choose another trainer.default_root_dir, or go on with it by --resume auto"
        )
    differences = find_differences(stored, given, defaults)
    for difference in differences:
        log.warning("differs from %s/config.yaml: %s", folder, difference)
    decisive = [difference for difference in differences if difference.decisive]
    if decisive and not allow_changes:
        shown = "; ".join(str(difference) for difference in decisive[:5])
        more = f" and {len(decisive) - 5} more" if len(decisive) > 5 else ""
        raise ValueError(
            f"{folder} holds a run with another configuration ({shown}{more}); choose another "
            "trainer.default_root_dir, or go on all the same with --allow_changes true"
        )
    return bool(decisive)


def find_checkpoint(
    trainer: pl.Trainer, resume: str, model: LanguageModelingModule, data: MultilingualDataModule | None = None
) -> str | None:
    """Path of the checkpoint to start from, or None for a fresh start; `data` is that of a training.

    Raises:
        FileNotFoundError: a path was given and nothing is there.
        ValueError: `model` cannot go on from it, see `check_checkpoint`.
    """
    found: list[Any] = [] if resume in ("auto", "never") else [resume]
    if found and not Path(resume).is_file():
        raise FileNotFoundError(f"--resume {resume}: no such file; give auto, never or the path of a checkpoint")
    if resume == "auto":
        finders = [getattr(callback, "newest_checkpoint", None) for callback in trainer.callbacks]  # type: ignore[attr-defined]
        found = [finder(Path(trainer.default_root_dir)) for finder in finders if finder is not None]
    checkpoint = next((str(path) for path in found if path is not None), None)
    if checkpoint is not None:
        check_checkpoint(checkpoint, model, data)
    return checkpoint
