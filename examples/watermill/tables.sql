create table bookings (
    id       text primary key,
    seat     integer not null,
    customer text not null,
    status   text not null default 'booked' check (status in ('booked', 'paid', 'released'))
);

create unique index bookings_seat on bookings (seat) where status <> 'released';
