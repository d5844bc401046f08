package main

import (
	"context"
	_ "embed"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

//go:embed tables.sql
var tables string

// createTables creates the example's tables and fills the stock: what Northwind had, and everything that is ordered.
func createTables(ctx context.Context, pool *pgxpool.Pool, orders []Order, products []Product) error {
	if _, err := pool.Exec(ctx, tables); err != nil {
		return fmt.Errorf("create the example's tables: %w", err)
	}
	ordered := map[int]int{}
	customers := map[string]bool{}
	var names [][]any
	for _, order := range orders {
		for _, line := range order.Lines {
			ordered[line.ProductID] += line.Quantity
		}
		if !customers[order.CustomerID] {
			customers[order.CustomerID] = true
			names = append(names, []any{order.CustomerID})
		}
	}
	stock := make([][]any, 0, len(products))
	for _, product := range products {
		stock = append(stock, []any{product.ID, product.Name, product.UnitsInStock + ordered[product.ID]})
	}
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{"shop", "products"}, []string{"product_id", "name", "stock"}, pgx.CopyFromRows(stock)); err != nil {
		return fmt.Errorf("fill the stock: %w", err)
	}
	if _, err := pool.CopyFrom(ctx, pgx.Identifier{"shop", "customers"}, []string{"customer_id"}, pgx.CopyFromRows(names)); err != nil {
		return fmt.Errorf("fill the customers: %w", err)
	}
	return nil
}
