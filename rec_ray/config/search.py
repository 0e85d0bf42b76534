"""Settings of the search views: item fields that become vectors, their models and their push sources.

The sections load no model; `check_search_targets` compares them with the feature repository.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from rec_ray.config.section import Positive, Section

TRANSFORMERS = "transformers:"
Model = Annotated[str, Field(pattern=r"^transformers:\S.*$")]
Texts = Annotated[list[str], Field(min_length=1)]


class ImageVector(Section):
    """Vector of an item's image, averaged with that of its text in the same space."""

    image: str = Field(description="Item field with the path or URL of the image.")
    text: list[str] = Field(
        default_factory=list, description="Item fields with text to average in; used alone if there is no image."
    )


class SearchSettings(Section):
    """Vectors of item texts and images for search views; setting an encoder enables its kind."""

    text_encoder: Model | None = Field(
        None,
        description="Model of text_views, transformers:<name or path>; use the model that encodes queries. null: off.",
    )
    image_encoder: Model | None = Field(
        None, description="Model of image_views, transformers:<name or path>, an architecture like CLIP. null: off."
    )
    text_views: dict[str, dict[str, Texts]] = Field(
        default_factory=lambda: {"item_textual_features_embed": {"about_product_embedding": ["about_product"]}},
        description="Push source -> field of its view -> item fields whose joined texts are encoded.",
    )
    image_views: dict[str, dict[str, ImageVector]] = Field(
        default_factory=lambda: {
            "item_clip_features_embed": {
                "clip_latent_space_embedding": ImageVector(image="img_link", text=["about_product"])
            }
        },
        description="Push source -> field of its view -> image: item field with a path or URL, text: item fields.",
    )
    image_weight: float = Field(
        2.0, gt=0, description="Weight of the image in the average; the text of the item has weight 1."
    )
    image_seconds: float = Field(
        10, gt=0, description="Timeout for fetching an image, in seconds; a slower one counts as unreadable."
    )
    image_bytes: Positive = Field(10_000_000, description="Maximum bytes of an image; a larger one is unreadable.")

    @model_validator(mode="after")
    def _fits_together(self) -> SearchSettings:
        both = sorted(set(self.text_views) & set(self.image_views))
        if both:
            raise ValueError(f"{both[0]} is in text_views and in image_views; a push source has vectors of one model")
        for kind in ("text", "image"):
            views = getattr(self, f"{kind}_views")
            if getattr(self, f"{kind}_encoder") and not views:
                raise ValueError(f"{kind}_encoder has no effect without {kind}_views")
            if empty := [source for source, fields in views.items() if not fields]:
                raise ValueError(f"{kind}_views.{empty[0]} lists no field of its view")
        return self

    @property
    def text_model(self) -> str:
        """Name or path of the text model."""
        return (self.text_encoder or "").removeprefix(TRANSFORMERS)

    @property
    def image_model(self) -> str:
        """Name or path of the image model."""
        return (self.image_encoder or "").removeprefix(TRANSFORMERS)

    @property
    def vectors(self) -> dict[str, list[str]]:
        """Push sources with an encoder -> fields of their views."""
        texts = {source: list(fields) for source, fields in self.text_views.items() if self.text_encoder}
        return texts | {source: list(fields) for source, fields in self.image_views.items() if self.image_encoder}

    @property
    def without_encoder(self) -> dict[str, str]:
        """Push sources without an encoder -> setting that names one."""
        texts = {} if self.text_encoder else dict.fromkeys(self.text_views, "search.text_encoder")
        return texts | ({} if self.image_encoder else dict.fromkeys(self.image_views, "search.image_encoder"))

    @property
    def item_fields(self) -> dict[str, str]:
        """Raw item fields to read -> setting that names each."""
        found: dict[str, str] = {}
        for source, texts in self.text_views.items() if self.text_encoder else ():
            found |= {name: f"search.text_views.{source}" for fields in texts.values() for name in fields}
        for source, images in self.image_views.items() if self.image_encoder else ():
            found |= {
                name: f"search.image_views.{source}" for each in images.values() for name in [each.image, *each.text]
            }
        return found
