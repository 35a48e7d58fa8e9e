"""ViT-B/16 on images and texts of the web with a sigmoid for each pair: SigLIP (arXiv:2303.15343).

The towers are those of SigLIP's B/16 at 224 px in big_vision: attention pooling, texts of 64 tokens without a
causal mask, the last token pooled. Scale and bias start at 10 and -10. The length, 9 billion pairs in batches
of 32,768, and the warm-up are our choice. Deviations: AdamW with the second moment's decay of 0.95 instead of
an Adafactor; a folder of pairs instead of WebLI, which is not public. registers=4 adds registers, which
SigLIP does not have.

The data are a folder root/{train,val}/*.tar, as WebDataset has them, or another one of docs/captions.md.
vocab=FILE is the sentencepiece model with 32,000 ids (c4_en), which no package of PyPI has.

Measured: not run. By the TPU compiler: 42.1 GiB of 95 on each chip of v5p:4x4x4, 42.8 with 4 registers
(docs/performance.md).

    vit-registers train --config=siglip_b16:vocab=c4_en.model,data_dir=root --workdir=/shared/run
    vit-registers evaluate --checkpoint=/shared/run --task=zero_shot --data=imagenet2012:validation \\
        --config.tasks.zero_shot.prompts="package(data='imagenet1k')"
"""

from collections.abc import Iterator

from ml_collections import ConfigDict

from vit_registers.config import (
    Captions,
    Checkpoint,
    Config,
    Data,
    ImageTextSettings,
    Mesh,
    Model,
    ObjectiveSettings,
    Optimizer,
    Run,
    Text,
    parse_arg,
    to_config_dict,
)

TEXT = Text(
    variant="B",
    vocab_size=32_000,
    context=64,
    is_causal=False,
    pool="last",
    embed_dim=768,
    has_projection_bias=True,
    activation="gelu_tanh",
    norm_eps=1e-6,
    init="big_vision",
    dtype="bfloat16",
)


def get_config(arg: str | None = None) -> ConfigDict:
    """Arguments: registers, mask, k (0: no summaries), positions, data (image_text | a TFDS name), data_dir,
    vocab (a file), batch, steps, seed."""
    a = parse_arg(
        arg,
        registers=0,
        mask="none",
        k=0,
        positions="learned",
        data="image_text",
        data_dir="",
        vocab="c4_en.model",
        batch=32_768,
        steps=274_658,
        seed=0,
    )
    config = Config(
        model=Model(
            variant="B",
            num_classes=0,
            use_cls=False,
            pooling="map",
            num_registers=a.registers,
            summary_factor=a.k or None,
            mask=a.mask,
            positions=a.positions,
            activation="gelu_tanh",
            dtype="bfloat16",
        ),
        text=TEXT,
        data=Data(
            name=a.data,
            data_dir=a.data_dir or None,
            eval_split="val",
            batch_size=a.batch,
            drop_last=True,
            train_ops="resize",
            eval_ops="resize",
            on_broken="skip",
            captions=Captions(tokenizer=f"sentencepiece(path={a.vocab!r})"),
        ),
        objective=ObjectiveSettings(
            name="image_text",
            image_text=ImageTextSettings(
                loss="siglip", initial_scale=10.0, initial_bias=-10.0, has_image_projection=False
            ),
        ),
        optimizer=Optimizer(
            learning_rate=1e-3,
            warmup_steps=min(10_000, a.steps // 5),
            weight_decay=0.1,  # multiplied by the rate: 1e-4 at the peak
            b2=0.95,
            mu_dtype="bfloat16",
        ),
        mesh=Mesh(data=-1),
        run=Run(total_steps=a.steps, eval_every_steps=max(a.steps // 32, 1), seed=a.seed),
        # One checkpoint of 20 is kept, for figures over training.
        checkpoint=Checkpoint(every_steps=2500, keep_every_steps=50_000),
    )
    return to_config_dict(config)


def sweep(arg: str | None = None) -> Iterator[dict[str, object]]:
    """0 and 4 registers."""
    del arg
    for count in (0, 4):
        yield {"model.num_registers": count}
