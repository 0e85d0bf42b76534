"""A model in a bucket of an S3 server: saved, opened, replaced, and refused with wrong keys."""

import pytest
from servers import SeaweedFS

from rec_ray import Recommender
from rec_ray.errors import StorageError


def test_a_bucket_is_a_store_like_a_folder(fitted, seaweedfs: SeaweedFS):
    url, server = f"s3://{seaweedfs.bucket}/api", {"endpoint": seaweedfs.endpoint}
    keys = {"access_key": seaweedfs.access_key, "secret_key": seaweedfs.secret_key}
    assert fitted.model.save(url, **server, **keys) == "1"
    opened = Recommender.open(url, **server, **keys)
    local = Recommender.open(str(fitted.store))
    assert opened.recommend(history=["i3"]) == local.recommend(history=["i3"])
    assert opened.recommend(user_id="u3") == local.recommend(user_id="u3")
    assert opened.is_live() and fitted.model.save(url, **server, **keys) == "2" and not opened.is_live()
    with pytest.raises(StorageError) as raised:
        Recommender.open(url, **server, access_key="nobody", secret_key="wrong")
    assert "\n" not in str(raised.value)
