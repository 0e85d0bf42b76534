"""A small offline store of one's own for Feast: tables that only its methods can read, as in Snowflake or BigQuery.

Tables are pickled frames in a folder, so that nothing but the store reads them; ids and times are those of the frames.
"""

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
from feast import ValueType
from feast.data_source import DataSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob
from feast.infra.offline_stores.offline_utils import get_feature_view_query_context
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import FeastConfigBaseModel
from feast.type_map import pa_to_feast_value_type

ENTITY_TIME = "event_timestamp"


class TinyOfflineStoreConfig(FeastConfigBaseModel):
    type: Literal["tiny_offline_store.TinyOfflineStore"] = "tiny_offline_store.TinyOfflineStore"


class TinySource(DataSource):
    """A table by its name, which is the path of its file."""

    def __init__(self, table: str, **more: Any) -> None:
        super().__init__(**{"name": Path(table).stem, **more})
        self.table = table

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> "TinySource":
        return TinySource(
            json.loads(data_source.custom_options.configuration)["table"],
            name=data_source.name,
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            field_mapping=dict(data_source.field_mapping),
        )

    def source_type(self) -> DataSourceProto.SourceType.ValueType:
        return DataSourceProto.CUSTOM_SOURCE

    def _to_proto_impl(self) -> DataSourceProto:
        options = DataSourceProto.CustomSourceOptions(configuration=json.dumps({"table": self.table}).encode())
        return DataSourceProto(
            name=self.name,
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type="tiny_offline_store.TinySource",
            field_mapping=self.field_mapping,
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            custom_options=options,
        )

    def validate(self, config: Any) -> None:
        """Accept every table."""

    def get_table_query_string(self) -> str:
        return self.table

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        return pa_to_feast_value_type

    def get_table_column_names_and_types(self, config: Any) -> Iterable[tuple[str, str]]:
        schema = pa.Schema.from_pandas(pd.read_pickle(self.table), preserve_index=False)
        return [(column.name, str(column.type)) for column in schema]


class TinyJob(RetrievalJob):
    def __init__(self, frame: pd.DataFrame, full_names: bool, computed: list[OnDemandFeatureView]) -> None:
        self.frame, self.full_names, self.computed = frame, full_names, computed

    @property
    def full_feature_names(self) -> bool:
        return self.full_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return self.computed

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self.frame

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return pa.Table.from_pandas(self.frame, preserve_index=False)


class TinyOfflineStore(OfflineStore):
    @staticmethod
    def pull_latest_from_table_or_query(*_: Any, **__: Any) -> RetrievalJob:
        raise AssertionError("training materialises nothing")

    @staticmethod
    def pull_all_from_table_or_query(
        config: Any,
        data_source: Any,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        frame = pd.read_pickle(data_source.table)
        times = pd.to_datetime(frame[timestamp_field], utc=True)
        wanted = pd.Series(True, frame.index)
        if start_date is not None:
            wanted &= times >= start_date
        if end_date is not None:
            wanted &= times <= end_date
        columns = [*join_key_columns, *feature_name_columns, timestamp_field]
        return TinyJob(frame.loc[wanted, list(dict.fromkeys(columns))], False, [])

    @staticmethod
    def get_historical_features(
        config: Any,
        feature_views: list[Any],
        feature_refs: list[str],
        entity_df: Any,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **_: Any,
    ) -> RetrievalJob:
        span = (entity_df[ENTITY_TIME].min(), entity_df[ENTITY_TIME].max())
        answer = entity_df.copy()
        for view in get_feature_view_query_context(feature_refs, feature_views, registry, project, span):
            rows = pd.read_pickle(view.table_subquery)
            key = view.entity_selections[0].split(" AS ")[0]
            order = [view.timestamp_field, *([view.created_timestamp_column] if view.created_timestamp_column else [])]
            rows = rows.sort_values(order, kind="stable")
            times = pd.to_datetime(rows[view.timestamp_field], utc=True)
            places = rows.reset_index(drop=True).groupby(key).indices
            found = [
                _newest(times, places.get(asked, ()), when, view.ttl)
                for asked, when in zip(entity_df[view.entities[0]], entity_df[ENTITY_TIME], strict=True)
            ]
            for column in view.features:
                name = view.field_mapping.get(column, column)
                values = [None if place is None else rows[column].iloc[place] for place in found]
                answer[f"{view.name}__{name}" if full_feature_names else name] = pd.Series(values, answer.index)
        computed = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        return TinyJob(answer, full_feature_names, computed)


def _newest(times: pd.Series, places: Iterable[int], when: Any, ttl: int) -> int | None:
    """Return the place of the last row of an entity that was valid. places: of its rows, in order of time."""
    newest = None
    for place in places:
        age = when - times.iloc[place]
        if age >= pd.Timedelta(0) and (not ttl or age <= pd.Timedelta(seconds=ttl)):
            newest = int(place)
    return newest
