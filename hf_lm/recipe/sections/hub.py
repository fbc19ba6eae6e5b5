"""Recipe section `hub`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hf_lm.recipe.sections.base import Section

Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.:+ -]{0,63}$")]


class HubRecipe(Section):
    """Publishing the model to the Hub."""

    model_id: str | None = Field(None, description="USER/NAME on the Hub")
    private: bool = Field(True, description="visible only to you")
    push: Literal["never", "end", "every_save"] = Field("never", description="when to upload")
    license: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$",
        description="licence id of the model card, such as `apache-2.0`",
    )
    tags: tuple[Tag, ...] = Field((), description="tags of the model card")
