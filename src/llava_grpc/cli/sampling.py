"""Options of the commands that ask, as far as they say how tokens are chosen and when to stop."""

from __future__ import annotations

from typing import Annotated

import typer

from llava_grpc.config import SettingsError

_PANEL = "Sampling"

Temperature = Annotated[float, typer.Option(help="0 takes the likeliest token each time.", rich_help_panel=_PANEL)]
TopP = Annotated[float, typer.Option(help="Keep the likeliest tokens that sum to this.", rich_help_panel=_PANEL)]
TopK = Annotated[int, typer.Option(help="Keep this many tokens. 0: all.", rich_help_panel=_PANEL)]
MinP = Annotated[
    float, typer.Option(help="Keep tokens with this share of the likeliest one's probability.", rich_help_panel=_PANEL)
]
RepetitionPenalty = Annotated[
    float, typer.Option(help="Above 1: against tokens of prompt and answer.", rich_help_panel=_PANEL)
]
PresencePenalty = Annotated[float, typer.Option(help="Above 0: against tokens of the answer.", rich_help_panel=_PANEL)]
FrequencyPenalty = Annotated[float, typer.Option(help="The same, for each time they came.", rich_help_panel=_PANEL)]
LogitBias = Annotated[
    list[str],
    typer.Option(metavar="ID=BIAS", help="Add to a token's score. Repeatable.", rich_help_panel=_PANEL),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="The longest answer. Default: 256, or what fits.", rich_help_panel=_PANEL)
]
MinNewTokens = Annotated[int, typer.Option(help="No end and no stop before so many tokens.", rich_help_panel=_PANEL)]
Seed = Annotated[int | None, typer.Option(help="Makes sampling repeatable.", rich_help_panel=_PANEL)]
Stop = Annotated[
    list[str], typer.Option(metavar="TEXT", help="The answer ends before this. Repeatable.", rich_help_panel=_PANEL)
]
StopTokenIds = Annotated[
    list[int],
    typer.Option(
        "--stop-token-id", metavar="ID", help="The answer ends at this token. Repeatable.", rich_help_panel=_PANEL
    ),
]
IgnoreEos = Annotated[
    bool, typer.Option("--ignore-eos", help="The answer does not end by itself.", rich_help_panel=_PANEL)
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="With --json: each token's log-probability, and those of the N likeliest.",
        rich_help_panel=_PANEL,
    ),
]


def logit_biases(pairs: list[str]) -> dict[int, float]:
    """`ID=BIAS` pairs as a mapping.

    Raises:
        SettingsError: one is not such a pair, or a token comes twice.
    """
    biases: dict[int, float] = {}
    for pair in pairs:
        token_id, _, bias = pair.partition("=")
        try:
            key, value = int(token_id), float(bias)
        except ValueError:
            raise SettingsError(f"--logit-bias {pair!r} is not ID=BIAS, two numbers") from None
        if key in biases:
            raise SettingsError(f"--logit-bias names token {key} twice")
        biases[key] = value
    return biases
