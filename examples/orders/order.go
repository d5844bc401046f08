package main

import (
	"bufio"
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
)

//go:embed data
var dataFiles embed.FS

// Order is an order as the customer has sent it.
type Order struct {
	ID         int    `json:"order_id"`
	CustomerID string `json:"customer_id"`
	// ShippedDate is when the carrier took it, in 1996 to 1998. Null: it never did.
	ShippedDate *string `json:"shipped_date"`
	Lines       []Line  `json:"lines"`
}

// Line is one product of an order.
type Line struct {
	ProductID       int   `json:"product_id"`
	UnitPriceCents  int64 `json:"unit_price_cents"`
	Quantity        int   `json:"quantity"`
	DiscountPercent int64 `json:"discount_percent"`
}

// Product is what is in stock before the first order.
type Product struct {
	ID           int    `json:"product_id"`
	Name         string `json:"name"`
	UnitsInStock int    `json:"units_in_stock"`
}

// approvalFrom is the total, in cents, from which an order waits for an approval.
const approvalFrom = 500_000

// RunID is the id of the order's workflow run, and so the key that makes starting it idempotent.
func (o Order) RunID() string { return "order-" + strconv.Itoa(o.ID) }

// Cents is the total. Each line is rounded down.
func (o Order) Cents() int64 {
	var total int64
	for _, line := range o.Lines {
		total += line.UnitPriceCents * int64(line.Quantity) * (100 - line.DiscountPercent) / 100
	}
	return total
}

// NeedsApproval reports whether somebody has to look at the order.
func (o Order) NeedsApproval() bool { return o.Cents() >= approvalFrom }

// Refused reports whether the carrier will refuse the order.
func (o Order) Refused() bool { return o.ShippedDate == nil }

// Units is the number of units of all lines.
func (o Order) Units() int {
	units := 0
	for _, line := range o.Lines {
		units += line.Quantity
	}
	return units
}

// byProduct returns the lines in the order in which all transactions lock the products, so that none waits in a circle.
func (o Order) byProduct() []Line {
	return slices.SortedFunc(slices.Values(o.Lines), func(a, b Line) int { return a.ProductID - b.ProductID })
}

// loadOrders returns the last n orders of the file, all of them if n is 0. The orders that were never shipped are among the
// last, so that a short demo has some, too.
func loadOrders(n int) ([]Order, error) {
	orders, err := load[Order]("data/orders.jsonl")
	if err != nil {
		return nil, err
	}
	if n > len(orders) {
		return nil, fmt.Errorf("-orders %d: the file has %d orders", n, len(orders))
	}
	if n > 0 {
		orders = orders[len(orders)-n:]
	}
	return orders, nil
}

func loadProducts() ([]Product, error) { return load[Product]("data/products.jsonl") }

func load[T any](name string) ([]T, error) {
	text, err := dataFiles.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var rows []T
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		var row T
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", name, len(rows)+1, err)
		}
		rows = append(rows, row)
	}
	return rows, nil
}
