-- The example's own tables: the shop's, written in the same transactions as the workflow's steps, and the payment
-- provider's, which stands for another company's system and is written over connections of its own.
--
-- Nothing here is unique that an activity executed twice would violate: it must show, not fail.

create schema shop;

create table shop.products (
    product_id integer primary key,
    name       text not null,
    stock      integer not null check (stock >= 0)
);

-- What reserving (negative) and restocking (positive) did, line by line.
create table shop.stock_moves (
    order_id   integer not null,
    product_id integer not null,
    units      integer not null
);

create table shop.reservations (
    order_id integer not null,
    worker   text not null
);

-- events numbers the events of a customer. Updating it makes the transactions that emit events for one customer commit one
-- after the other, so that their events have an order.
create table shop.customers (
    customer_id text primary key,
    events      integer not null default 0
);

create table shop.shipments (
    order_id   integer not null,
    worker     text not null,
    packed_due timestamptz not null, -- the end of the sleep before it
    shipped_at timestamptz not null default clock_timestamp()
);

create schema provider;

create table provider.payments (
    idempotency_key text primary key,
    order_id        integer not null,
    kind            text not null check (kind in ('charge', 'refund')),
    cents           bigint not null,
    requests        integer not null default 1 -- how often it was asked for
);
