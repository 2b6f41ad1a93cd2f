-- Prefect's database beside Dagster's; run once, when the volume is empty.
CREATE DATABASE prefect;
