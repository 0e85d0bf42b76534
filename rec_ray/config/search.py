"""Settings of the search views: which item fields become vectors, by which models, and where they are pushed.

Plain values go in and frozen sections come out. They know no model, and not whether the repository has the views.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rec_ray.config.section import Positive, Section

TRANSFORMERS = "transformers:"
Model = Annotated[str, Field(pattern=r"^transformers:\S.*$")]
Texts = Annotated[list[str], Field(min_length=1)]


class ImageVector(Section):
    """A vector of an item's image, and of its text in the same space."""

    image: str = Field(description="Field of an item with the path or address of its image.")
    text: list[str] = Field(default_factory=list, description="Fields of an item whose text counts too, and stands in.")


class SearchSettings(Section):
    """Vectors of what items say and show, for views that are searched by text or image; without an encoder none."""

    text_encoder: Model | None = Field(
        None, description="transformers:<name or path of a model> for text_views, the one that queries use; null: none."
    )
    image_encoder: Model | None = Field(
        None, description="transformers:<name or path of a model of the kind of CLIP> for image_views; null: none."
    )
    text_views: dict[str, dict[str, Texts]] = Field(
        default_factory=lambda: {"item_textual_features_embed": {"about_product_embedding": ["about_product"]}},
        description="Push source -> field of its view -> fields of an item whose texts, joined, are its vector.",
    )
    image_views: dict[str, dict[str, ImageVector]] = Field(
        default_factory=lambda: {
            "item_clip_features_embed": {
                "clip_latent_space_embedding": ImageVector(image="img_link", text=["about_product"])
            }
        },
        description="Push source -> field of its view -> image: field of an item with a path or address, text: fields.",
    )
    image_weight: float = Field(
        2.0, gt=0, description="What an image weighs in its vector beside the text of the item, which weighs 1."
    )
    image_seconds: float = Field(10, gt=0, description="An image that takes longer to come counts as unreadable.")
    image_bytes: Positive = Field(10_000_000, description="A file of an image that is larger counts as unreadable.")

    @model_validator(mode="after")
    def _fits_together(self) -> SearchSettings:
        both = sorted(set(self.text_views) & set(self.image_views))
        if both:
            raise ValueError(f"{both[0]} is among text_views and image_views; a push source has vectors of one model")
        for kind in ("text", "image"):
            views = getattr(self, f"{kind}_views")
            if getattr(self, f"{kind}_encoder") and not views:
                raise ValueError(f"{kind}_encoder says nothing without {kind}_views")
            if empty := [source for source, fields in views.items() if not fields]:
                raise ValueError(f"{kind}_views.{empty[0]} names no field of its view")
        return self

    @property
    def text_model(self) -> str:
        """Name or path of the model for texts."""
        return (self.text_encoder or "").removeprefix(TRANSFORMERS)

    @property
    def image_model(self) -> str:
        """Name or path of the model for images."""
        return (self.image_encoder or "").removeprefix(TRANSFORMERS)

    @property
    def vectors(self) -> dict[str, list[str]]:
        """The push sources that have an encoder -> the fields of their views."""
        texts = {source: list(fields) for source, fields in self.text_views.items() if self.text_encoder}
        return texts | {source: list(fields) for source, fields in self.image_views.items() if self.image_encoder}

    @property
    def without_encoder(self) -> dict[str, str]:
        """The push sources that have no encoder -> the setting that would name one."""
        texts = {} if self.text_encoder else dict.fromkeys(self.text_views, "search.text_encoder")
        return texts | ({} if self.image_encoder else dict.fromkeys(self.image_views, "search.image_encoder"))

    @property
    def item_fields(self) -> dict[str, str]:
        """The item fields that are read raw -> the setting that names each."""
        found: dict[str, str] = {}
        for source, texts in self.text_views.items() if self.text_encoder else ():
            found |= {name: f"search.text_views.{source}" for fields in texts.values() for name in fields}
        for source, images in self.image_views.items() if self.image_encoder else ():
            found |= {
                name: f"search.image_views.{source}" for each in images.values() for name in [each.image, *each.text]
            }
        return found
